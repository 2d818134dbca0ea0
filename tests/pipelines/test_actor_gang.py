"""Gangs of workers on Ray: placed together, ended together, with the results of single ones."""

import json
import sys
from collections import Counter

import pytest

ray = pytest.importorskip("ray")
import psutil  # noqa: E402
from fake_worker import GangWorker, order, ran, start_ray  # noqa: E402

from mesa_lm.demo import MODEL_PATH  # noqa: E402
from mesa_lm.errors import MesaError, UsageError  # noqa: E402
from mesa_lm.pipelines.run import run_sweep  # noqa: E402
from mesa_lm.pipelines.shards import plan_shards  # noqa: E402
from mesa_lm.pipelines.sweep_file import load_sweep  # noqa: E402
from mesa_lm.pipelines.worker import Worker  # noqa: E402

SWEEP = """
name: gangs
out: OUT
models: [{pretrained: MODEL}]
methods: [mesa]
tasks: [{task: passkey_long, metadata: {num_samples: 4}}]
lengths: [80, 1300]
shard_tokens: 2700
workers: {cpus: 1, cp_size: 2}
max_attempts: 2
"""


def sweep_of(folder, *overrides):
    folder.mkdir()
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.replace("OUT", str(folder / "out")).replace("MODEL", str(MODEL_PATH)))
    (folder / "out").mkdir()
    return load_sweep(path, overrides)


@pytest.fixture(scope="module")
def two_cpus():
    if not ray.is_initialized():
        start_ray(num_cpus=2)
    yield
    ray.shutdown()


def test_every_shard_is_run_by_a_whole_gang_and_one_that_loses_a_process_is_ended(tmp_path, two_cpus):
    sweep = sweep_of(tmp_path / "a")
    order(sweep, 0, "passkey_long_1300", 2, "second killed once")
    order(sweep, 0, "passkey_long_80", 0, "second failed once")
    outcome = run_sweep(sweep, factory=GangWorker)
    shards = plan_shards(sweep)
    assert (outcome.done, outcome.failed) == (len(shards), {})
    assert ran(sweep) == Counter(shard.key for shard in shards)
    began = [line.split() for line in (sweep.out / "gang").read_text().splitlines()]
    attempts = {shard.key: 1 if (shard.leaf, shard.start) == ("passkey_long_1300", 0) else 2 for shard in shards}
    assert Counter((key, place) for key, place, _ in began) == {
        (key, p): n for key, n in attempts.items() for p in "01"
    }
    assert len({first for *_, first in began}) == 3, "gangs, each of which was told where its first one is"


@pytest.mark.slow
def test_one_that_runs_out_of_memory_tells_for_all(tmp_path, two_cpus):
    sweep = sweep_of(tmp_path / "a")
    order(sweep, 0, "passkey_long_1300", 2, "second oom once")
    outcome = run_sweep(sweep, factory=GangWorker)
    assert {shard.leaf for shard in outcome.out_of_memory} == {"passkey_long_1300"} and not outcome.failed


def test_a_gang_needs_room_for_all(tmp_path, two_cpus):
    sweep = sweep_of(tmp_path / "a", "workers.cp_size=3", "workers.wait_s=0.5")
    with pytest.raises(UsageError, match="one needs 0 GPUs and 1 CPUs on one node, 3 times, the nodes have"):
        run_sweep(sweep, factory=GangWorker)


def test_methods_that_share_no_prompts_are_refused(tmp_path):
    with pytest.raises(
        MesaError,
        match="workers.cp_size=2 is for methods that cut prompts into chunks, which 'rerope'",
    ):
        sweep_of(tmp_path / "a", "methods=[mesa, rerope]")


def test_gangs_are_of_workers(tmp_path):
    with pytest.raises(UsageError, match="args: cp_size is a setting of the workers: workers.cp_size"):
        sweep_of(tmp_path / "a", "models=[{args: {cp_size: 2}}]")


def test_gangs_do_not_change_shards(tmp_path):
    sweep, alone = sweep_of(tmp_path / "a"), sweep_of(tmp_path / "b", "workers.cp_size=1")
    assert [shard.key for shard in plan_shards(sweep)] == [shard.key for shard in plan_shards(alone)]


class OnceKilled(Worker):
    """Its second process is killed at its first shard."""

    def _answers(self, shard):
        sign = self.sweep.out / "killed"
        if self._place == 1 and not sign.exists():
            sign.touch()
            psutil.Process().kill()
        return super()._answers(shard)


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow
def test_results_are_those_of_single_workers(tmp_path, two_cpus):
    merged = []
    for name, factory, size in (("a", OnceKilled, 2), ("b", Worker, 1)):
        sweep = sweep_of(tmp_path / name, f"workers.cp_size={size}")
        outcome = run_sweep(sweep, factory=factory)
        assert outcome.done == len(plan_shards(sweep)) and not outcome.failed
        (path,) = outcome.results
        merged.append(json.loads(path.read_text()))
        assert (sweep.out / "killed").exists() == (size == 2)
    for name in ("results", "n-samples", "versions"):
        assert merged[0][name] == merged[1][name]
