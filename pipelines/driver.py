"""Hand shards to workers: the next one for whoever is free, a lost one to another, and what becomes of each."""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

import ray

from mesa_lm.pipelines.outcome import Outcome, ShardReport
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store
from mesa_lm.pipelines.worker_pool import Slot, WorkerPool

logger = logging.getLogger(__name__)

# In what Ray says of a worker that it ended because its node was short of memory.
OWN_MEMORY = re.compile(r"memory used=([\d.]+)GB")
NODE_MEMORY = re.compile(r"was running was [\d.]+GB / ([\d.]+)GB")


class Watcher(Protocol):
    """Whoever follows a sweep while it runs."""

    def done(self, shard: Shard) -> bool:
        """Take in that a shard has stored its answers; return whether they are there."""

    def show(self, pool: WorkerPool, left: int) -> None:
        """Show where the sweep is, with the cost of all that is not finished, in tokens."""


class Driver:
    """Hands out shards until all are done, failed, or known to be too long."""

    def __init__(
        self, sweep: Sweep, store: Store, outcome: Outcome, factory: Callable[..., Any], wait_s: float | None = None
    ) -> None:
        """Prepare.

        Args:
            sweep: The sweep.
            store: Its folder.
            outcome: Where to note what becomes of the shards.
            factory: Makes a worker from the sweep, the index of a model in it and the driver's working folder.
            wait_s: How long to wait for resources where there are none; None: as the sweep says.
        """
        self.sweep, self.store, self.outcome = sweep, store, outcome
        self.pool = WorkerPool(sweep, factory, sweep.workers.wait_s if wait_s is None else wait_s)
        self.attempts: Counter[Shard] = Counter()
        # By model: what is to be run, the costliest last, where it is taken from; and its cost.
        self.pending: dict[int, list[Shard]] = defaultdict(list)
        self.cost: Counter[int] = Counter()
        # The shortest length at which a model, method and task ran out of memory.
        self.too_long: dict[tuple[int, int, int, str], float] = {}

    def work(self, missing: Sequence[Shard], watcher: Watcher) -> None:
        """Evaluate shards.

        Args:
            missing: The shards, the costliest first.
            watcher: Told of every shard that is done, and every second of all.

        Raises:
            UsageError: No worker can be placed.
        """
        self.watcher = watcher
        for shard in reversed(missing):
            failure = self.store.read_failure(shard.key)
            if failure is not None and failure.get("status") == "oom" and not self.sweep.longer_after_oom:
                self._note_oom(shard)
            self._put(shard)
        self._skip_too_long()
        try:
            while self.pool.running or any(self.pending.values()):
                for slot in self.pool.idle:
                    if self.pending[slot.model]:
                        self._begin(slot, self._take(slot.model))
                waiting = {model: len(shards) for model, shards in self.pending.items() if shards}
                self.pool.adjust(waiting, self.cost)
                for slot in self.pool.wait():
                    shard, reference = slot.finish()
                    self._finish(slot, shard, reference)
                for slot in self.pool.stalled():
                    self._give_up(slot)
                at_work = sum(slot.shard.cost for slot in self.pool.running if slot.shard)
                watcher.show(self.pool, self.cost.total() + at_work)
        finally:
            self.pool.close()

    def _begin(self, slot: Slot, shard: Shard) -> None:
        self.attempts[shard] += 1
        self.store.log("started", shard, attempt=self.attempts[shard])
        slot.run(shard)

    def _put(self, shard: Shard) -> None:
        self.pending[shard.model].append(shard)
        self.cost[shard.model] += shard.cost

    def _take(self, model: int) -> Shard:
        shard = self.pending[model].pop()
        self.cost[model] -= shard.cost
        return shard

    def _skip_too_long(self) -> None:
        """Take out what is known to be too long, for which no worker needs to be started."""
        for model, shards in self.pending.items() if self.too_long else ():
            long = {shard for shard in shards if self._is_too_long(shard)}
            self.pending[model] = [shard for shard in shards if shard not in long]
            self.cost[model] -= sum(shard.cost for shard in long)
            for shard in long:
                self._fail_oom(shard, "skipped: a shorter input, or another part of this one, ran out of memory")

    def _give_up(self, slot: Slot) -> None:
        """Take its shard from a worker that does not move on."""
        shard, _ = slot.finish()
        self.pool.drop_hanging(slot)
        if self.watcher.done(shard):  # it had finished before it hung
            self.outcome.done += 1
            return
        told = f"its worker made no progress for {self.pool.patience_s(shard):.0f} s"
        self._conclude(shard, ShardReport(status="failed", error=told))

    def _finish(self, slot: Slot, shard: Shard, reference: Any) -> None:
        """Take in how a shard ended."""
        try:
            report: ShardReport = ray.get(reference)
        except ray.exceptions.RayError as error:
            logger.warning("shard %s: its worker was lost: %s", shard.key, type(error).__name__)
            self.pool.drop(slot)
            if self.watcher.done(shard):  # it had finished before it was lost
                self.outcome.done += 1
                return
            report = _report_of_loss(error)
        if report.status == "done" and not self.watcher.done(shard):
            told = f"its answers are not in {self.store.folder}, which every node must share"
            report = ShardReport(status="failed", error=told, final=True)
        # GPU memory may stay lost to a process that ran out of it; the others of a gang wait for the one that failed.
        if (report.status == "oom" or (report.status == "failed" and slot.gang.size > 1)) and slot in self.pool.slots:
            self.pool.drop(slot)
        self._conclude(shard, report)

    def _conclude(self, shard: Shard, report: ShardReport) -> None:
        """Note how an attempt ended, and decide what follows."""
        self.store.log(report.status, shard, seconds=report.seconds, error=report.error or None)
        if report.status == "done":
            self.outcome.done += 1
        elif report.status == "oom":
            self._fail_oom(shard, report.error)
            self._skip_too_long()
        elif report.disk_full:
            self._fail(shard, report.error)
            for left in chain.from_iterable(self.pending.values()):  # their answers would be lost as well
                self._fail(left, f"not run: {self.store.folder} is full")
            self.pending.clear()
            self.cost.clear()
        elif self.attempts[shard] < self.sweep.max_attempts and not report.final:
            logger.warning("shard %s of %s: %s; trying again", shard.key, shard.leaf, report.error)
            self._put(shard)
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


def _report_of_loss(error: Exception) -> ShardReport:
    """Say what a lost worker means for its shard.

    Ray ends the workers of a node that is short of memory, whoever took it: only where the worker itself had most of
    the node's memory is that a result, else a failure.
    """
    lost = f"its worker was lost: {type(error).__name__}"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        own, node = (pattern.search(str(error)) for pattern in (OWN_MEMORY, NODE_MEMORY))
        if own and node and float(own[1]) > float(node[1]) / 2:
            return ShardReport(status="oom", error=f"{lost}: it had {own[1]} of {node[1]} GB of its node")
        lost += f": its node ran short of memory, of which this worker had {own[1]} GB" if own else ""
    return ShardReport(status="failed", error=lost)
