"""Whatever breaks during a sweep: nothing finished is lost or done twice, and what is missing runs again."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray")
from fake_worker import ElsewhereWorker, FakeWorker, order, ran, start_ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray_nodes import SWEEP, with_workers  # noqa: E402

from mesa_lm.demo import MODEL_PATH  # noqa: E402
from mesa_lm.errors import UsageError  # noqa: E402
from mesa_lm.harness import sources  # noqa: E402
from mesa_lm.pipelines.driver import _report_of_loss  # noqa: E402
from mesa_lm.pipelines.run import run_sweep  # noqa: E402
from mesa_lm.pipelines.shards import plan_shards  # noqa: E402
from mesa_lm.pipelines.store import Store  # noqa: E402
from mesa_lm.pipelines.sweep_file import load_sweep  # noqa: E402
from mesa_lm.reporting.results import read  # noqa: E402


@pytest.fixture
def no_cluster():
    """For those that start one of their own: run them in a process of their own, `pytest -m slow`."""
    if ray.is_initialized():
        ray.shutdown()


def test_a_raising_shard_fails_alone_and_runs_again_next_time(sweep, local_ray):
    order(sweep, 1, "passkey_long_80", 2, "failed")
    outcome = run_sweep(sweep, factory=FakeWorker)
    ((shard, error),) = outcome.failed.items()
    assert (shard.leaf, shard.start, error) == ("passkey_long_80", 2, "failed on purpose")
    assert ran(sweep)[shard.key] == sweep.max_attempts and outcome.done == len(plan_shards(sweep)) - 1
    (partial,) = [path for path in outcome.results if "0-1-0" in str(path)]
    report = json.loads(partial.read_text())
    assert list(report["configs"]) == ["passkey_long_130"] and report["sweep"]["missing"] == ["passkey_long_80"]
    assert report["sweep"]["partial"]

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


def test_damaged_exchanged_and_foreign_shard_files_run_again(sweep, local_ray, caplog):
    done = run_sweep(sweep, factory=FakeWorker).done
    files = sorted((sweep.out / "shards").glob("*.jsonl"))
    damaged, rewritten, left, right, foreign, *_ = files
    damaged.write_text(damaged.read_text()[:-20])
    rewritten.write_text(rewritten.read_text().replace('"1"', '"2"', 1))
    contents = left.read_text(), right.read_text()
    left.write_text(contents[1]), right.write_text(contents[0])
    foreign.write_text('{"a file": "of somebody else"}\n')
    outcome = run_sweep(sweep, factory=FakeWorker)
    assert (outcome.done, outcome.reused) == (done, done - 5)
    assert sorted(key for key, times in ran(sweep).items() if times == 2) == sorted(file.stem for file in files[:5])
    assert f"{damaged} is damaged; the shard runs again" in caplog.text
    assert f"{left} holds the answers of another shard, {right.stem}; the shard runs again" in caplog.text
    assert f"{foreign} is damaged; the shard runs again" in caplog.text


def test_a_folder_in_the_place_of_a_file_or_the_reverse_is_named(sweep, local_ray):
    key = plan_shards(sweep)[0].key
    (sweep.out / "shards" / f"{key}.jsonl").mkdir(parents=True)
    with pytest.raises(UsageError, match=f"{key}.jsonl: a folder where the answers of a shard belong; remove it"):
        run_sweep(sweep, factory=FakeWorker)
    (sweep.out / "shards" / f"{key}.jsonl").rmdir()
    (sweep.out / "results").write_text("")
    with pytest.raises(UsageError, match="out/results: a file where a sweep keeps a folder"):
        run_sweep(sweep, factory=FakeWorker)


def test_answers_that_cannot_be_scored_end_neither_the_sweep_nor_what_others_answered(sweep, local_ray):
    order(sweep, 0, "passkey_long_80", 0, "nonsense")
    outcome = run_sweep(sweep, factory=FakeWorker)
    assert (outcome.done, outcome.failed) == (len(plan_shards(sweep)), {})
    ((what, why),) = outcome.unwritten.items()
    assert what.endswith("model, mesa, passkey_long")
    assert re.match("the answers of .*passkey_long_80.* cannot be scored: TypeError: expected string", why)
    assert "Traceback" in (sweep.out / "logs" / "merge.log").read_text()
    spoilt, whole = (json.loads(path.read_text()) for path in sorted(outcome.results))
    assert spoilt["sweep"]["missing"] == ["passkey_long_80"] and spoilt["sweep"]["partial"]
    assert not whole["sweep"]["partial"]


def test_a_length_is_merged_as_soon_as_it_is_there_and_read_once(sweep, local_ray, monkeypatch):
    """At every moment the results file is whole, and says that it is not all."""
    seen, reads = [], Counter()
    read_shard = Store.read_shard

    def counted(store, key):
        found = read_shard(store, key)
        reads[key] += found is not None
        return found

    monkeypatch.setattr(Store, "read_shard", counted)

    class Live:
        def merged(self, results, leaves):
            lengths = set(read([results]).table.length)
            seen.append((results.parents[1].name, *leaves))
            assert lengths == {int(leaf.rpartition("_")[2]) for entry, leaf in seen if entry == seen[-1][0]}
            about = json.loads(results.read_text())["sweep"]
            assert about["partial"] == bool(about["missing"]) == (len(about["leaves"]) < 2)

        def show(self, now):
            assert now.total == len(shards) and now.done + now.waiting + now.running == now.total

    shards = plan_shards(sweep)
    outcome = run_sweep(with_workers(sweep, count=1), factory=FakeWorker, live=Live())
    leaves = ("passkey_long_80", "passkey_long_130")
    assert len(seen) == 4 and set(seen) == {(entry, leaf) for entry in ("0-0-0", "0-1-0") for leaf in leaves}
    assert reads == Counter(shard.key for shard in shards)
    whole = json.loads(outcome.results[0].read_text())
    assert "passkey_long" in whole["groups"] and not whole["sweep"]["partial"]
    assert {path.parents[1].name for path in outcome.results} == {"0-0-0", "0-1-0"}
    before = {path: path.read_bytes() for path in outcome.results}
    again = run_sweep(sweep, factory=FakeWorker, live=Live())
    assert len(seen) == 4 and {path: path.read_bytes() for path in again.results} == before
    reads.clear()  # what an interrupted sweep left: a whole length that is not merged, and one that lacks a shard
    shutil.rmtree(sweep.out / "results")
    (sweep.out / "shards" / f"{shards[0].key}.jsonl").unlink()
    again = run_sweep(sweep, factory=FakeWorker)
    assert (again.done, again.reused) == (len(shards), len(shards) - 1) and reads == Counter(s.key for s in shards)


def test_an_edited_engine_runs_every_shard_again(sweep, local_ray, monkeypatch, tmp_path):
    """Without a word of another version; and what the old one merged is gone."""
    shutil.copytree(sources.PACKAGE / "methods", tmp_path / "mesa_lm" / "methods")
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "mesa_lm")
    first = run_sweep(sweep, factory=FakeWorker)
    assert run_sweep(sweep, factory=FakeWorker).reused == first.done == len(plan_shards(sweep))
    with (tmp_path / "mesa_lm" / "methods" / "rerope.py").open("a") as file:
        file.write("# edited\n")
    again = run_sweep(sweep, factory=FakeWorker)
    assert (again.done, again.reused) == (first.done, 0)
    assert not set(first.results) & set(again.results) and not any(path.exists() for path in first.results)


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


@pytest.mark.slow
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
    assert errors or outcome.unwritten
    assert not [path for path in sweep.out.rglob(".*") if not path.name.startswith(".nfs")]

    assert mounted("-o", "remount,size=4m", str(small_disk))
    again = run_sweep(sweep)
    assert (again.done, again.reused, again.failed, again.unwritten) == (len(shards), len(files), {}, {})
    assert len(again.results) == 2 and json.loads((sweep.out / "summary.json").read_text())["done"] == len(shards)


@pytest.mark.slow
def test_a_node_short_of_memory_is_a_failure_that_the_next_run_tries_again(sweep, no_cluster, monkeypatch):
    used = psutil.virtual_memory().percent / 100
    room = 1.5 * 2**30 / psutil.virtual_memory().total
    with monkeypatch.context() as patch:
        patch.setenv("RAY_memory_usage_threshold", f"{used + room:.4f}")
        patch.setenv("RAY_memory_monitor_refresh_ms", "100")
        order(sweep, 0, "passkey_long_80", 0, "eat")
        start_ray(num_cpus=1)
        try:
            outcome = run_sweep(sweep, factory=FakeWorker)
        finally:
            ray.shutdown()
    shards = plan_shards(sweep)
    eater = next(s for s in shards if (s.method, s.leaf, s.start) == (0, "passkey_long_80", 0))
    assert set(outcome.failed) == {eater} and not outcome.out_of_memory
    said = r"its worker was lost: OutOfMemoryError: its node ran short of memory, of which this worker had [\d.]+ GB"
    assert re.fullmatch(said, outcome.failed[eater])
    assert ran(sweep)[eater.key] == sweep.max_attempts and outcome.done == len(shards) - 1
    (sweep.out / "0-passkey_long_80-0").unlink()
    start_ray(num_cpus=1)
    try:
        again = run_sweep(sweep, factory=FakeWorker)
    finally:
        ray.shutdown()
    assert (again.done, again.reused, again.failed) == (len(shards), len(shards) - 1, {})


# As Ray 2.60 says it.
SHORT = """Task was killed due to the node running low on memory.
Memory on the node (IP: 127.0.0.1, ID: 5d9) where the task (actor ID: 1f, name=Worker.run, pid=9, memory used={own}GB) \
was running was 22.31GB / 23.46GB (0.951), which exceeds the memory usage threshold of 0.95."""


@pytest.mark.parametrize(("own", "status"), [("14.20", "oom"), ("2.10", "failed")])
def test_only_a_worker_that_had_most_of_its_nodes_memory_ran_out_of_it_itself(own, status):
    report = _report_of_loss(ray.exceptions.OutOfMemoryError(SHORT.format(own=own)))
    assert report.status == status and f"had {own}" in report.error


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


@pytest.mark.slow
def test_a_killed_driver_is_resumed_and_a_second_one_is_refused(sweep, tmp_path, no_cluster):
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

    start_ray(num_cpus=2)
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


@pytest.mark.slow
def test_relative_paths_are_the_drivers_on_a_cluster_started_elsewhere(tmp_path, no_cluster, monkeypatch):
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


@pytest.mark.slow
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
