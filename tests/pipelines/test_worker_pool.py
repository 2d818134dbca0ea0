"""Workers that end, hang, fit no node, or whose nodes come and go."""

import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

ray = pytest.importorskip("ray")
from fake_worker import FakeWorker, order, ran, who  # noqa: E402
from ray_nodes import joined, until, with_workers  # noqa: E402

from mesa_lm.errors import UsageError  # noqa: E402
from mesa_lm.pipelines.run import run_sweep  # noqa: E402
from mesa_lm.pipelines.shards import plan_shards  # noqa: E402


def test_a_killed_worker_is_replaced_and_its_shard_runs_again(sweep, local_ray):
    order(sweep, 0, "passkey_long_130", 1, "kill once")
    outcome = run_sweep(sweep, factory=FakeWorker)
    shards = plan_shards(sweep)
    killed = next(s for s in shards if (s.method, s.leaf, s.start) == (0, "passkey_long_130", 1))
    assert (outcome.done, outcome.failed) == (len(shards), {})
    assert ran(sweep) == Counter({shard.key: 1 for shard in shards}) + Counter([killed.key])
    assert len(outcome.results) == 2


@pytest.mark.parametrize("what", ["stop once", pytest.param("hang once", marks=pytest.mark.slow)])
def test_the_shard_of_a_worker_that_does_not_move_on_is_given_to_another(sweep, local_ray, what):
    """Stopped, it answers nobody, not even Ray; hanging, it says itself that its shard stands still."""
    order(sweep, 0, "passkey_long_130", 1, what)
    impatient = with_workers(sweep, stall_s=1.0)
    shards = plan_shards(sweep)
    hung = next(s for s in shards if (s.method, s.leaf, s.start) == (0, "passkey_long_130", 1))
    began = time.monotonic()
    outcome = run_sweep(impatient, factory=FakeWorker)
    assert (outcome.done, outcome.failed) == (len(shards), {})
    assert ran(sweep) == Counter({shard.key: 1 for shard in shards}) + Counter([hung.key])
    assert time.monotonic() - began < 200
    events = [json.loads(line) for line in (sweep.out / "events.jsonl").read_text().splitlines()]
    (failure,) = [event for event in events if event["event"] == "failed"]
    assert failure["key"] == hung.key
    assert re.fullmatch(r"its worker made no progress for \d s", failure["error"])
    until(lambda: ray.available_resources().get("CPU") == 2)  # its process is gone, and holds nothing any more


def test_a_worker_that_fits_no_node_waits_and_ends_with_what_it_needs(sweep, nodes, local_ray):
    small = joined(nodes, 1)
    try:
        until(lambda: ray.cluster_resources().get("CPU") == 3)
        began = time.monotonic()
        with pytest.raises(UsageError) as caught:
            run_sweep(with_workers(sweep, cpus=3.0, wait_s=2.0), factory=FakeWorker)
        assert 2 < time.monotonic() - began < 100
        said = re.sub(r"in \d+ s", "in N s", str(caught.value))
        assert said.startswith(
            "no worker could be placed in N s: one needs 0 GPUs and 3 CPUs on one node, the nodes have "
        )
        assert "0 GPUs and 2 CPUs" in said and "0 GPUs and 1 CPUs" in said
        # Two of two CPUs are asked for, of which one fits: it does all.
        outcome = run_sweep(with_workers(sweep, cpus=2.0, count=2), factory=FakeWorker)
        assert (outcome.done, outcome.failed) == (len(plan_shards(sweep)), {})
        assert len(set(who(sweep))) == 1
    finally:
        nodes.remove_node(small)
        until(lambda: ray.cluster_resources().get("CPU") == 2)


def test_nodes_that_join_late_are_used_and_those_that_leave_are_not_missed(sweep, nodes, local_ray):
    """The node that joins takes a shard and leaves with it."""
    for shard in plan_shards(sweep):
        order(sweep, shard.method, shard.leaf, shard.start, "wait")
    with ThreadPoolExecutor(1) as pool:  # a node can only be added by the main thread
        running = pool.submit(run_sweep, with_workers(sweep, cpus=2.0), factory=FakeWorker)
        try:
            until(lambda: (sweep.out / "who").exists())
            late = joined(nodes, 2)
            until(lambda: len({node for node, _ in who(sweep)}) == 2)
            (worker,) = (int(pid) for node, pid in who(sweep) if node == late.node_id)
            nodes.remove_node(late, allow_graceful=False)
            until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)
        finally:
            (sweep.out / "go on").touch()
        outcome = running.result()
    assert (outcome.done, outcome.failed) == (len(plan_shards(sweep)), {})
    assert sum(ran(sweep).values()) == outcome.done + 1
    until(lambda: ray.cluster_resources().get("CPU") == 2)
