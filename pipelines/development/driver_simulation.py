"""Measure what a shard costs the driver: many shards, workers without a model.

python -m mesa_lm.pipelines.development.driver_simulation --shards 10000 --workers 64
"""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import typer

from mesa_lm.pipelines.driver import Driver
from mesa_lm.pipelines.outcome import Outcome, Pulse, ShardReport
from mesa_lm.pipelines.run import cluster
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store
from mesa_lm.pipelines.worker_pool import WorkerPool

CPUS = 0.01  # of a worker, so that many fit any machine


class FakeWorker:
    """Store a few answers per shard, as a worker does, without a model."""

    def __init__(self, sweep: Sweep, model: int, cwd: Path) -> None:
        self.store = Store(sweep.out)

    def run(self, shard: Shard) -> ShardReport:
        """Store the answers of a shard."""
        self.store.write_shard(shard.key, {"responses": {str(number): [["12345"]] for number in range(4)}})
        return ShardReport(status="done")

    def pulse(self) -> Pulse:
        """Say where this is."""
        return Pulse(node=ray.get_runtime_context().get_node_id(), pid=os.getpid(), still_s=0.0)


class Unwatched:
    """Follows a sweep without a look."""

    def done(self, shard: Shard) -> bool:
        """Take in that a shard is done."""
        return True

    def show(self, pool: WorkerPool, left: int) -> None:
        """Show nothing."""


def fake_plan(count: int) -> list[Shard]:
    """Return shards of one sample each."""
    return [
        Shard(
            key=f"{number:012x}",
            documents="",
            sources="",
            model=0,
            method=0,
            task=0,
            leaf="passkey_long_1k",
            length=1024,
            start=number,
            stop=number + 1,
            cost=1024,
        )
        for number in range(count)
    ]


def simulate(shards: int, workers: int, folder: Path) -> dict[str, Any]:
    """Run a sweep of fake shards on this machine.

    Args:
        shards: How many.
        workers: How many, each a process.
        folder: Where the shards are stored.

    Returns:
        Processor time of the driver and wall time per shard, in ms, and the driver's peak memory when a tenth of the
        shards was done and at the end, in MiB.
    """
    sweep = Sweep.model_validate(
        {
            "name": "simulation",
            "out": folder,
            "methods": ["origin"],
            "tasks": ["passkey_long"],
            "workers": {"count": workers, "cpus": CPUS},
        }
    )
    outcome, store = Outcome(), Store(folder)
    plan = fake_plan(shards)
    with store.locked(), cluster(None):
        Driver(sweep, store, outcome, FakeWorker).work(plan[: shards // 10], Unwatched())
        early = _peak_mb()
        wall, cpu = time.perf_counter(), time.process_time()
        Driver(sweep, store, outcome, FakeWorker).work(plan[shards // 10 :], Unwatched())
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    measured = shards - shards // 10
    return {
        "shards": outcome.done,
        "workers": workers,
        "driver_cpu_ms_per_shard": round(1000 * cpu / measured, 3),
        "wall_ms_per_shard": round(1000 * wall / measured, 3),
        "peak_mb_after_a_tenth": early,
        "peak_mb_at_the_end": _peak_mb(),
    }


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(shards: int = 10_000, workers: int = 64) -> None:
    """Print the measurement as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(simulate(shards, workers, Path(folder)), indent=2))


if __name__ == "__main__":
    typer.run(main)
