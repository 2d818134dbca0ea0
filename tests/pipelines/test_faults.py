"""Whatever breaks during a sweep: nothing finished is lost or done twice, and what is missing runs again."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray")
from fake_worker import ElsewhereWorker, FakeWorker, NodeWorker, order, ran  # noqa: E402

from mesa_lm.demo import MODEL_PATH  # noqa: E402
from mesa_lm.errors import UsageError  # noqa: E402
from mesa_lm.pipelines.run import run_sweep  # noqa: E402
from mesa_lm.pipelines.shards import plan_shards  # noqa: E402
from mesa_lm.pipelines.sweep_file import load_sweep  # noqa: E402

pytestmark = pytest.mark.slow

SWEEP = """
name: test
out: OUT
models: [{pretrained: MODEL}]
methods: [mesa, rerope]
tasks: [{task: passkey_long, metadata: {num_samples: 4}}]
lengths: [80, 130]
shard_tokens: 150
workers: {cpus: 1}
max_attempts: 2
"""


@pytest.fixture
def sweep(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.replace("OUT", str(tmp_path / "out")).replace("MODEL", str(MODEL_PATH)))
    (tmp_path / "out").mkdir()
    return load_sweep(path)


@pytest.fixture
def local_ray():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    yield
    ray.shutdown()


def test_a_killed_worker_is_replaced_and_its_shard_runs_again(sweep, local_ray):
    order(sweep, 0, "passkey_long_130", 1, "kill once")
    outcome = run_sweep(sweep, factory=FakeWorker)
    shards = plan_shards(sweep)
    killed = next(s for s in shards if (s.method, s.leaf, s.start) == (0, "passkey_long_130", 1))
    assert (outcome.done, outcome.failed) == (len(shards), {})
    assert ran(sweep) == Counter({shard.key: 1 for shard in shards}) + Counter([killed.key])
    assert len(outcome.results) == 2


def test_a_raising_shard_fails_alone_and_runs_again_next_time(sweep, local_ray):
    order(sweep, 1, "passkey_long_80", 2, "failed")
    outcome = run_sweep(sweep, factory=FakeWorker)
    ((shard, error),) = outcome.failed.items()
    assert (shard.leaf, shard.start, error) == ("passkey_long_80", 2, "failed on purpose")
    assert ran(sweep)[shard.key] == sweep.max_attempts and outcome.done == len(plan_shards(sweep)) - 1
    (partial,) = [path for path in outcome.results if "0-1-0" in str(path)]
    report = json.loads(partial.read_text())
    assert list(report["configs"]) == ["passkey_long_130"] and report["sweep"]["missing"] == ["passkey_long_80"]

    (sweep.out / "1-passkey_long_80-2").unlink()
    again = run_sweep(sweep, factory=FakeWorker)
    assert (again.done, again.reused, again.failed) == (outcome.done + 1, outcome.done, {})
    assert sum(ran(sweep).values()) == outcome.done + sweep.max_attempts + 1
    assert not list((sweep.out / "failures").glob("*.json"))


def test_out_of_memory_is_a_result_and_longer_inputs_are_skipped(sweep, local_ray):
    order(sweep, 0, "passkey_long_80", 0, "oom")
    # Costliest first: with one worker the longer length is done before the shorter one runs out of memory.
    longer = sweep.model_copy(update={"lengths": (80, 130, 260)})
    order(longer, 1, "passkey_long_130", 0, "oom")
    outcome = run_sweep(longer, factory=FakeWorker)
    assert outcome.failed == {} and {s.leaf for s in outcome.out_of_memory if s.method == 0} >= {"passkey_long_80"}
    for path in (longer.out / "failures").glob("*.json"):
        assert json.loads(path.read_text())["status"] == "oom"
    before = sum(ran(longer).values())

    again = run_sweep(longer, factory=FakeWorker)
    assert sum(ran(longer).values()) == before  # known to be too long
    assert {s.leaf for s in again.out_of_memory} == {s.leaf for s in outcome.out_of_memory}


def test_damaged_shard_files_run_again(sweep, local_ray, caplog):
    done = run_sweep(sweep, factory=FakeWorker).done
    first, second, *_ = sorted((sweep.out / "shards").glob("*.jsonl"))
    first.write_text(first.read_text()[:-20])
    second.write_text(second.read_text().replace('"1"', '"2"', 1))
    outcome = run_sweep(sweep, factory=FakeWorker)
    assert (outcome.done, outcome.reused) == (done, done - 2)
    assert sorted(key for key, times in ran(sweep).items() if times == 2) == sorted([first.stem, second.stem])
    assert f"{first} is damaged; the shard runs again" in caplog.text


def mounted(*arguments):
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)):
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("room", ["8k", "32k", "120k"])  # for no shard, some shards, all shards but not their results
def test_a_full_disk_loses_nothing_and_stops_the_sweep(sweep, local_ray, small_disk, room):
    sweep = sweep.model_copy(update={"out": small_disk / "out"})
    assert mounted("-o", f"remount,size={room}", str(small_disk))
    outcome = run_sweep(sweep)  # the workers that evaluate, with the demo model
    shards = plan_shards(sweep)
    files = {path.stem for path in (sweep.out / "shards").glob("*.jsonl")}
    assert outcome.done == len(files) == len(shards) - len(outcome.failed)
    assert {shard.key for shard in outcome.failed}.isdisjoint(files)
    errors = list(outcome.failed.values())
    assert all("No space left on device" in error or error.startswith("not run: ") for error in errors)
    assert (room == "120k") == (not errors)
    assert outcome.results == [] and outcome.unwritten
    assert not [path for path in sweep.out.rglob(".*") if not path.name.startswith(".nfs")]

    assert mounted("-o", "remount,size=4m", str(small_disk))
    again = run_sweep(sweep)
    assert (again.done, again.reused, again.failed, again.unwritten) == (len(shards), len(files), {}, {})
    assert len(again.results) == 2 and json.loads((sweep.out / "summary.json").read_text())["done"] == len(shards)


def test_a_worker_that_ray_ends_because_memory_is_short_is_out_of_memory_in_the_end(sweep, monkeypatch):
    used = psutil.virtual_memory().percent / 100
    room = 1.5 * 2**30 / psutil.virtual_memory().total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{used + room:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    order(sweep, 0, "passkey_long_80", 0, "eat")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=40)
    try:
        outcome = run_sweep(sweep, factory=FakeWorker)
    finally:
        ray.shutdown()
    shards = plan_shards(sweep)
    eater = next(s for s in shards if (s.method, s.leaf, s.start) == (0, "passkey_long_80", 0))
    assert outcome.failed == {} and eater in outcome.out_of_memory
    assert ran(sweep)[eater.key] == sweep.max_attempts
    assert json.loads((sweep.out / "failures" / f"{eater.key}.json").read_text())["status"] == "oom"
    # What is as long or longer is skipped, as after any other lack of memory; the other method goes on.
    assert outcome.done == len(shards) - len(outcome.out_of_memory)
    assert {s.method for s in outcome.out_of_memory} == {0}


def test_a_removed_node_takes_nothing_with_it(sweep):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=40)
    try:
        order(sweep, 0, "passkey_long_130", 0, "hang once")

        @ray.remote(num_cpus=0)
        class Remover:
            def wait(self, path):
                while Path(path).exists():  # until the shard hangs
                    time.sleep(0.05)

        head = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            next(n["NodeID"] for n in ray.nodes() if n["NodeID"] != second.node_id), soft=False
        )
        waiting = (
            Remover.options(scheduling_strategy=head).remote().wait.remote(str(sweep.out / "0-passkey_long_130-0"))
        )
        import threading

        def remove():
            ray.get(waiting)
            time.sleep(0.5)
            cluster.remove_node(second, allow_graceful=False)
            # The shard may hang on the head: then free it.
            (sweep.out / "removed").touch()

        thread = threading.Thread(target=remove, daemon=True)
        thread.start()
        pinned = sweep.model_copy(update={"workers": sweep.workers.model_copy(update={"count": 2})})
        outcome = run_sweep(pinned, factory=NodeWorker)
        assert (outcome.done, outcome.failed) == (len(plan_shards(sweep)), {})
    finally:
        ray.shutdown()
        cluster.shutdown()


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fake_worker import FakeWorker
from mesa_lm.pipelines.run import run_sweep
from mesa_lm.pipelines.sweep_file import load_sweep
run_sweep(load_sweep(Path({path!r})), factory=FakeWorker)
"""


def driver(tmp_path):
    code = DRIVER.format(tests=str(Path(__file__).parents[1]), path=str(tmp_path / "sweep.yaml"))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_driver_is_resumed_and_a_second_one_is_refused(sweep, tmp_path):
    for start in range(4):
        order(sweep, 0, "passkey_long_130", start, "slow")
    first = driver(tmp_path)
    shards = sweep.out / "shards"
    while len(list(shards.glob("*.jsonl"))) < 2:
        assert first.poll() is None
        time.sleep(0.1)
    with pytest.raises(UsageError, match="another sweep is writing here"):
        run_sweep(sweep, factory=FakeWorker)
    first.kill()
    first.wait()
    time.sleep(3)  # its workers notice
    finished = {path.stem for path in shards.glob("*.jsonl")}
    before = ran(sweep)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
    try:
        outcome = run_sweep(sweep, factory=FakeWorker)
    finally:
        ray.shutdown()
    assert outcome.done == len(plan_shards(sweep)) and outcome.reused == len(finished) > 1
    assert all(ran(sweep)[key] == before[key] for key in finished)


def test_answers_that_nobody_here_finds_are_failures(sweep, local_ray):
    outcome = run_sweep(sweep, factory=ElsewhereWorker)
    assert (outcome.done, outcome.results, len(outcome.failed)) == (0, [], len(plan_shards(sweep)))
    assert set(outcome.failed.values()) == {f"its answers are not in {sweep.out}, which every node must share"}


def test_relative_paths_are_the_drivers_on_a_cluster_started_elsewhere(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    (tmp_path / "started").mkdir()
    monkeypatch.chdir(tmp_path / "started")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    Path("model").symlink_to(MODEL_PATH)
    Path("sweep.yaml").write_text(SWEEP.replace("OUT", "out").replace("MODEL", "./model"))
    ray.init(address=cluster.address, log_to_driver=False, logging_level=40)
    try:
        outcome = run_sweep(load_sweep(Path("sweep.yaml")))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert outcome.failed == {} and len(outcome.results) == 2
    assert all(path.is_relative_to(tmp_path / "project" / "out") for path in outcome.results)


def test_an_interrupted_sweep_says_what_is_kept(tmp_path):
    text = SWEEP.replace("OUT", str(tmp_path / "out")).replace("MODEL", str(MODEL_PATH)).replace("130", "8192")
    (tmp_path / "sweep.yaml").write_text(text)
    command = [sys.executable, "-m", "mesa_lm", "sweep", str(tmp_path / "sweep.yaml"), "--set", "workers.count=1"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    shards = tmp_path / "out" / "shards"
    while len(list(shards.glob("*.jsonl"))) < 2:
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    kept = len(list(shards.glob("*.jsonl")))
    assert running.returncode == 130
    assert f"interrupted: {kept} finished shards are kept in {tmp_path / 'out'}; the same command goes on" in said
