"""Hand shards to workers on Ray: actors that hold a model each, the next shard for whoever is free."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import ray

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.outcome import Outcome, ShardReport
from mesa_lm.pipelines.progress import Progress
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store

logger = logging.getLogger(__name__)


@dataclass
class _Slot:
    """A worker: an actor for one model, and the shard it runs."""

    actor: Any
    model: int
    shard: Shard | None = None


class Driver:
    """Hands out shards until all are done, failed, or known to be too long."""

    def __init__(self, sweep: Sweep, store: Store, outcome: Outcome, factory: Callable[..., Any]) -> None:
        """Prepare.

        Args:
            sweep: The sweep.
            store: Its folder.
            outcome: Where to note what becomes of the shards.
            factory: Makes a worker from the sweep, the index of a model in it and the driver's working folder.
        """
        self.sweep, self.store, self.outcome, self.factory = sweep, store, outcome, factory
        self.attempts: Counter[Shard] = Counter()
        # By model: what is to be run, the costliest last, where it is taken from; and its cost.
        self.pending: dict[int, list[Shard]] = defaultdict(list)
        self.cost: Counter[int] = Counter()
        self.slots: list[_Slot] = []
        # The shortest length at which a model, method and task ran out of memory.
        self.too_long: dict[tuple[int, int, int, str], float] = {}

    def work(self, missing: Sequence[Shard], total: int) -> None:
        """Evaluate shards.

        Args:
            missing: The shards, the costliest first.
            total: Number of all shards, those included that are done.
        """
        for shard in reversed(missing):
            failure = self.store.read_failure(shard.key)
            if failure is not None and failure.get("status") == "oom" and not self.sweep.longer_after_oom:
                self._note_oom(shard)
            self._put(shard)
        count = worker_count(self.sweep, len(missing))
        running: dict[Any, _Slot] = {}
        cost = sum(shard.cost for shard in missing)
        with self._closing(), Progress(total, self.outcome.done, cost) as progress:

            def show() -> None:
                at_work = [slot.shard for slot in running.values() if slot.shard]
                left = self.cost.total() + sum(shard.cost for shard in at_work)
                progress.show(at_work, self.outcome, left)

            while running or any(self.pending.values()):
                while len(running) < count and (following := self._next()) is not None:
                    slot = self._slot(following)
                    self.attempts[following] += 1
                    self.store.log("started", following, attempt=self.attempts[following])
                    running[slot.actor.run.remote(following)] = slot
                show()
                ready, _ = ray.wait(list(running), timeout=1.0) if running else ([], [])
                for reference in ready:
                    self._finish(reference, running.pop(reference))
                    show()

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Leave no worker behind, whatever ends the sweep."""
        try:
            yield
        finally:
            for slot in self.slots:
                ray.kill(slot.actor)

    def _put(self, shard: Shard) -> None:
        self.pending[shard.model].append(shard)
        self.cost[shard.model] += shard.cost

    def _take(self, model: int) -> Shard:
        shard = self.pending[model].pop()
        self.cost[model] -= shard.cost
        return shard

    def _idle(self) -> list[_Slot]:
        return [slot for slot in self.slots if slot.shard is None]

    def _next(self) -> Shard | None:
        """Return the next shard: for an idle worker's model if it has any left, else of the model with most left."""
        idle = {slot.model for slot in self._idle()}
        for model in sorted(self.pending, key=lambda model: (model not in idle, -self.cost[model])):
            while self.pending[model]:
                shard = self._take(model)
                if not self._is_too_long(shard):
                    return shard
                self._fail_oom(shard, "skipped: a shorter input, or another part of this one, ran out of memory")
        return None

    def _slot(self, shard: Shard) -> _Slot:
        """Return a worker for a shard: an idle one of its model, or a new one, in the place of an idle one."""
        idle = self._idle()
        slot = next((slot for slot in idle if slot.model == shard.model), None)
        if slot is None:
            if idle:
                self._drop(idle[0])
            workers = self.sweep.workers
            remote = ray.remote(num_gpus=workers.gpus, num_cpus=workers.cpus, max_restarts=0)(self.factory)
            slot = _Slot(actor=remote.remote(self.sweep, shard.model, Path.cwd()), model=shard.model)
            self.slots.append(slot)
        slot.shard = shard
        return slot

    def _drop(self, slot: _Slot) -> None:
        self.slots.remove(slot)
        ray.kill(slot.actor)

    def _finish(self, reference: Any, slot: _Slot) -> None:
        """Take in how a shard ended."""
        shard, slot.shard = slot.shard, None
        assert shard is not None
        try:
            report: ShardReport = ray.get(reference)
        except ray.exceptions.RayError as error:
            lost = f"its worker was lost: {type(error).__name__}"
            logger.warning("shard %s: %s", shard.key, lost)
            self._drop(slot)
            if self.store.read_shard(shard.key) is not None:  # it had finished before it was lost
                self.outcome.done += 1
                return
            no_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            report = ShardReport(status="failed", error=lost, node_out_of_memory=no_memory)
        self.store.log(report.status, shard, seconds=report.seconds, error=report.error or None)
        if report.status == "done":
            self.outcome.done += 1
        elif report.status == "oom":
            self._drop(slot)  # GPU memory may stay lost to a process that ran out of it
            self._fail_oom(shard, report.error)
        elif report.disk_full:
            self._fail(shard, report.error)
            for left in chain.from_iterable(self.pending.values()):  # their answers would be lost as well
                self._fail(left, f"not run: {self.store.folder} is full")
            self.pending.clear()
            self.cost.clear()
        elif self.attempts[shard] < self.sweep.max_attempts and not report.final:
            logger.warning("shard %s of %s: %s; trying again", shard.key, shard.leaf, report.error)
            self._put(shard)
        elif report.node_out_of_memory:
            self._fail_oom(shard, report.error)
        else:
            self._fail(shard, report.error)

    def _note_oom(self, shard: Shard) -> None:
        cell = (*shard.entry, shard.group)
        self.too_long[cell] = min(self.too_long.get(cell, float("inf")), shard.length or float("inf"))

    def _is_too_long(self, shard: Shard) -> bool:
        least = self.too_long.get((*shard.entry, shard.group))
        if least is None or shard.length is None:
            return False
        return shard.length == least or (shard.length > least and not self.sweep.longer_after_oom)

    def _fail(self, shard: Shard, error: str) -> None:
        self.outcome.failed[shard] = error
        self._record(shard, {"status": "failed", "error": error, "log": f"logs/{shard.key}.log"})

    def _fail_oom(self, shard: Shard, error: str) -> None:
        self._note_oom(shard)
        self.outcome.out_of_memory.add(shard)
        self._record(shard, {"status": "oom", "length": shard.length, "error": error})

    def _record(self, shard: Shard, failure: dict[str, Any]) -> None:
        try:
            self.store.write_failure(shard.key, failure)
        except OSError as error:  # a full disk must not end the sweep: the summary still says it
            logger.warning("%s: the failure of shard %s cannot be stored (%s)", self.store.folder, shard.key, error)


def worker_count(sweep: Sweep, shards: int) -> int:
    """Return how many workers to run on the cluster that is connected.

    Args:
        sweep: The sweep.
        shards: How many are to be run.

    Raises:
        UsageError: The cluster has no room for one.
    """
    workers, there = sweep.workers, ray.cluster_resources()
    fits = int(there.get("CPU", 0) / workers.cpus)
    if workers.gpus:
        fits = min(fits, int(there.get("GPU", 0) / workers.gpus))
    if fits < 1:
        raise UsageError(
            f"no worker fits the cluster: one needs {workers.gpus:g} GPUs and {workers.cpus:g} CPUs, "
            f"there are {there.get('GPU', 0):g} and {there.get('CPU', 0):g}"
        )
    return max(1, min(fits if workers.count == "auto" else workers.count, fits, shards))
