"""Run a sweep on Ray: actors that hold a model each, shards handed to whoever is free, everything kept on disk."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import ray

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.config import Sweep
from mesa_lm.pipelines.merge import merge
from mesa_lm.pipelines.outcome import Outcome
from mesa_lm.pipelines.plan import Shard, as_json, plan
from mesa_lm.pipelines.progress import Progress
from mesa_lm.pipelines.secrets import without_secrets
from mesa_lm.pipelines.store import Store, quiet
from mesa_lm.pipelines.worker import Worker

logger = logging.getLogger(__name__)

ATTEMPTS_LOST = "its worker was lost"


@dataclass
class _Slot:
    """A worker: an actor for one model, and the shard it runs."""

    actor: Any
    model: int
    shard: Shard | None = None


def run(sweep: Sweep, address: str | None = None, factory: Callable[..., Any] = Worker) -> Outcome:
    """Run what is missing of a sweep, and merge what is complete.

    Args:
        sweep: The sweep.
        address: Of a Ray cluster, "auto" for the one of this node; None starts one on this machine.
        factory: Makes a worker from the sweep and the place of a model in it; its `run` evaluates a shard.

    Raises:
        MesaError: The sweep is wrong, or its folder is in use.
    """
    # Workers of a cluster start in folders of their own.
    sweep = sweep.model_copy(update={"out": sweep.out.expanduser().absolute()})
    store = Store(sweep.out)
    with store.locked():
        with quiet(store.log_path("plan")):
            shards = plan(sweep)
        store.write("plan", {"sweep": without_secrets(sweep.model_dump(mode="json")), "shards": as_json(shards)})
        outcome = Outcome()
        missing = [shard for shard in shards if store.read_shard(shard.key) is None]
        outcome.done = outcome.reused = len(shards) - len(missing)
        if missing:
            with cluster(address):
                Driver(sweep, store, outcome, factory).work(missing, total=len(shards))
            _check_stored(missing, store, outcome)
        with quiet(store.log_path("merge")):
            for _, group in groupby(sorted(shards, key=_entry), key=_entry):
                _merge(sweep, list(group), store, outcome)
        try:
            store.write("summary", _summary(outcome, len(shards)))
        except UsageError as error:
            outcome.unwritten["summary"] = str(error)
        return outcome


def _check_stored(shards: Sequence[Shard], store: Store, outcome: Outcome) -> None:
    """Count shards as failed whose answers a worker has stored where nobody here finds them."""
    for shard in shards:
        known = shard in outcome.failed or shard in outcome.out_of_memory
        if not known and store.read_shard(shard.key) is None:
            outcome.done -= 1
            outcome.failed[shard] = f"its answers are not in {store.folder}, which every node must share"


def _merge(sweep: Sweep, shards: Sequence[Shard], store: Store, outcome: Outcome) -> None:
    """Merge one model, method and task; a full disk does not keep the others from it."""
    try:
        written = merge(sweep, shards, store)
    except OSError as error:
        names = (sweep.models[shards[0].model].name, sweep.methods[shards[0].method].label)
        outcome.unwritten[", ".join((*names, sweep.tasks[shards[0].task].task))] = str(error)
        return
    if written is not None:
        outcome.results.append(written)


class Driver:
    """Hands out shards until all are done, failed, or known to be too long."""

    def __init__(self, sweep: Sweep, store: Store, outcome: Outcome, factory: Callable[..., Any]) -> None:
        self.sweep, self.store, self.outcome, self.factory = sweep, store, outcome, factory
        self.attempts: Counter[Shard] = Counter()
        self.slots: list[_Slot] = []
        # The shortest length at which a model, method and task ran out of memory.
        self.too_long: dict[tuple[int, int, int, str], float] = {}

    def work(self, missing: Sequence[Shard], total: int) -> None:
        """Evaluate shards.

        Args:
            missing: The shards, the costliest first.
            total: Number of all shards, those included that are done.
        """
        pending: dict[int, list[Shard]] = defaultdict(list)
        for shard in reversed(missing):  # the costliest last, where they are taken from
            failure = self.store.read_failure(shard.key)
            if failure is not None and failure.get("status") == "oom" and not self.sweep.longer_after_oom:
                self._note_oom(shard)
            pending[shard.model].append(shard)
        count = _worker_count(self.sweep, len(missing))
        running: dict[Any, _Slot] = {}
        cost = sum(shard.cost for shard in missing)
        with self._closing(), Progress(total, self.outcome.done, cost) as progress:

            def show() -> None:
                at_work = [slot.shard for slot in running.values() if slot.shard]
                left = sum(shard.cost for group in (at_work, *pending.values()) for shard in group)
                progress.show(at_work, self.outcome, left)

            while running or any(pending.values()):
                while len(running) < count and (following := self._next(pending, running)) is not None:
                    slot = self._slot(following.model, running)
                    slot.shard = following
                    self.attempts[following] += 1
                    self.store.log("started", following, attempt=self.attempts[following])
                    running[slot.actor.run.remote(following)] = slot
                show()
                ready, _ = ray.wait(list(running), timeout=1.0) if running else ([], [])
                for reference in ready:
                    slot = running.pop(reference)
                    self._finish(reference, slot, pending)
                    show()

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Leave no worker behind, whatever ends the sweep."""
        try:
            yield
        finally:
            for slot in self.slots:
                ray.kill(slot.actor)

    def _next(self, pending: dict[int, list[Shard]], running: dict[Any, _Slot]) -> Shard | None:
        """Return the next shard: for an idle worker's model if it has any left, else of the model with most left."""
        busy = {id(slot) for slot in running.values()}
        idle = [slot.model for slot in self.slots if id(slot) not in busy]
        models = sorted(pending, key=lambda model: (model not in idle, -sum(shard.cost for shard in pending[model])))
        for model in models:
            while pending[model]:
                shard = pending[model].pop()
                if not self._is_too_long(shard):
                    return shard
                self._fail_oom(shard, "skipped: a shorter input, or another part of this one, ran out of memory")
        return None

    def _slot(self, model: int, running: dict[Any, _Slot]) -> _Slot:
        """Return an idle worker for a model; one of another model gives way."""
        busy = {id(slot) for slot in running.values()}
        idle = [slot for slot in self.slots if id(slot) not in busy]
        for slot in idle:
            if slot.model == model:
                return slot
        if idle:
            self._drop(idle[0])
        workers = self.sweep.workers
        remote = ray.remote(num_gpus=workers.gpus, num_cpus=workers.cpus, max_restarts=0)(self.factory)
        slot = _Slot(actor=remote.remote(self.sweep, model, Path.cwd()), model=model)
        self.slots.append(slot)
        return slot

    def _drop(self, slot: _Slot) -> None:
        self.slots.remove(slot)
        ray.kill(slot.actor)

    def _finish(self, reference: Any, slot: _Slot, pending: dict[int, list[Shard]]) -> None:
        """Take in how a shard ended."""
        shard = slot.shard
        assert shard is not None
        slot.shard = None
        try:
            report = ray.get(reference)
        except ray.exceptions.RayError as error:
            logger.warning("shard %s: %s (%s)", shard.key, ATTEMPTS_LOST, type(error).__name__)
            self._drop(slot)
            if self.store.read_shard(shard.key) is not None:  # it had finished before it was lost
                self.outcome.done += 1
                return
            # Ray ends a worker when its node is short of memory, which need not be this shard's doing.
            no_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            report = {"status": "failed", "error": f"{ATTEMPTS_LOST}: {type(error).__name__}", "no_memory": no_memory}
        self.store.log(report["status"], shard, seconds=report.get("seconds"), error=report.get("error"))
        if report["status"] == "done":
            self.outcome.done += 1
        elif report["status"] == "oom":
            self._drop(slot)  # GPU memory may stay lost to a process that ran out of it
            self._fail_oom(shard, report["error"])
        elif report.get("disk_full"):
            for left in (shard, *chain.from_iterable(pending.values())):  # their answers would be lost as well
                self._fail(left, report["error"] if left is shard else f"not run: {self.store.folder} is full")
            pending.clear()
        elif self.attempts[shard] < self.sweep.max_attempts and not report.get("final"):
            logger.warning("shard %s of %s: %s; trying again", shard.key, shard.leaf, report["error"])
            pending[shard.model].append(shard)
        elif report.get("no_memory"):
            self._fail_oom(shard, report["error"])
        else:
            self._fail(shard, report["error"])

    def _note_oom(self, shard: Shard) -> None:
        cell = (shard.model, shard.method, shard.task, shard.group)
        self.too_long[cell] = min(self.too_long.get(cell, float("inf")), shard.length or float("inf"))

    def _is_too_long(self, shard: Shard) -> bool:
        least = self.too_long.get((shard.model, shard.method, shard.task, shard.group))
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


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one here that ends with the sweep; a connection that is there is used.

    Raises:
        UsageError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}  # nothing listens to the outside
    try:
        ray.init(address, **options)
    except ConnectionError as error:
        raise UsageError(f"no Ray cluster at {address!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _worker_count(sweep: Sweep, shards: int) -> int:
    """Return how many workers to run.

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


def _entry(shard: Shard) -> tuple[int, int, int]:
    return shard.model, shard.method, shard.task


def _summary(outcome: Outcome, total: int) -> dict[str, Any]:
    """Return what became of a sweep as plain values."""
    return {
        "time": time.time(),
        "shards": total,
        "done": outcome.done,
        "reused": outcome.reused,
        "failed": [{"key": s.key, "leaf": s.leaf, "error": error} for s, error in outcome.failed.items()],
        "out_of_memory": sorted({s.leaf for s in outcome.out_of_memory}),
        "results": [str(path) for path in outcome.results],
        "unwritten": outcome.unwritten,
    }
