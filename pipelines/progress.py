"""Show how far a sweep is: live on a terminal, as log lines elsewhere, and in a file for `mesa-lm status`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from mesa_lm.pipelines.outcome import Outcome
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.store import Store
from mesa_lm.pipelines.worker_pool import Slot, WorkerPool
from mesa_lm.reporting.files import write_atomically

SHOW_EVERY_S = 0.5
LINE_EVERY_S = 30.0
FILE_EVERY_S = 5.0
STATE = "progress.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a sweep is at one moment.

    Attributes:
        time: Seconds since 1970.
        total: Number of shards.
        done: Those that have stored answers.
        failed: Those that have none, for good.
        out_of_memory: Those that ran out of memory, or were skipped because a shorter input did.
        running: Those at work.
        waiting: Those that nobody runs yet.
        tokens_per_s: Tokens of finished shards per second of this run.
        eta_s: Seconds until the rest will be done if its tokens take as long; None where that is unknown.
        lacking: What workers wait for, in words; empty where none does.
        workers: Of each worker its node, process, model, shard, tokens per second and GPU memory.
    """

    time: float
    total: int
    done: int
    failed: int
    out_of_memory: int
    running: int
    waiting: int
    tokens_per_s: float
    eta_s: float | None
    lacking: str
    workers: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """In words, beside the number of those done."""
        told = f"{self.running} running, {self.failed + self.out_of_memory} failed"
        return f"{told}, waiting for resources: {self.lacking}" if self.lacking else told

    @property
    def eta(self) -> str:
        """When the rest will be done, in words."""
        return "?" if self.eta_s is None else str(timedelta(seconds=round(self.eta_s)))


class Progress:
    """Shards done, running and failed, and when the rest will be done."""

    def __init__(self, sweep: Sweep, store: Store, outcome: Outcome, total: int, cost: int) -> None:
        """Begin.

        Args:
            sweep: The sweep.
            store: Its folder.
            outcome: What was finished so far.
            total: Number of shards, those included that an earlier run finished.
            cost: Of the others, in tokens.
        """
        self.sweep, self.store, self.outcome, self.total, self.cost = sweep, store, outcome, total, cost
        self.start, self.shown, self.lined, self.filed = time.monotonic(), 0.0, 0.0, 0.0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        eta = TextColumn("ETA {task.fields[eta]}")
        self.bar = Bar(*columns, eta, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.shards = self.bar.add_task("shards", total=total, completed=outcome.done, eta="?")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.bar.stop()
        with contextlib.suppress(OSError):
            (self.store.folder / STATE).unlink(missing_ok=True)  # nobody is at work any more

    def show(self, pool: WorkerPool, left: int) -> Snapshot | None:
        """Show where the sweep is, unless that was done just before.

        Args:
            pool: Its workers.
            left: Cost of all that is not finished, in tokens.

        Returns:
            The same in numbers; None where nothing was shown.
        """
        clock, left_out = time.monotonic(), len(self.outcome.failed) + len(self.outcome.out_of_memory)
        if clock - self.shown < SHOW_EVERY_S and self.outcome.done + left_out < self.total:
            return None
        self.shown = clock
        now = self.snapshot(pool, left)
        finished = now.done + now.failed + now.out_of_memory
        self.bar.update(self.shards, completed=finished, description=now.text, eta=now.eta)
        if self.bar.disable and (clock - self.lined >= LINE_EVERY_S or finished == self.total):
            self.lined = clock
            print(f"{now.done} of {self.total} shards done, {now.text}, ETA {now.eta}", file=sys.stderr, flush=True)
        if clock - self.filed >= FILE_EVERY_S:
            self.filed = clock
            with contextlib.suppress(OSError):  # a full disk is told of where it loses something
                write_atomically(self.store.folder / STATE, json.dumps(asdict(now)))
        return now

    def snapshot(self, pool: WorkerPool, left: int) -> Snapshot:
        """Return where the sweep is in numbers."""
        finished, elapsed = self.cost - left, time.monotonic() - self.start
        done, failed, long = self.outcome.done, len(self.outcome.failed), len(self.outcome.out_of_memory)
        running = len(pool.running)
        return Snapshot(
            time=time.time(),
            total=self.total,
            done=done,
            failed=failed,
            out_of_memory=long,
            running=running,
            waiting=self.total - done - failed - long - running,
            tokens_per_s=finished / elapsed,
            eta_s=elapsed / finished * left if finished else None,
            lacking=pool.lacking() if pool.is_waiting else "",
            workers=[self._described(slot) for slot in pool.placed],
        )

    def _described(self, slot: Slot) -> dict[str, Any]:
        return {
            "node": slot.pulse and slot.pulse.node,
            "pid": slot.pulse and slot.pulse.pid,
            "model": self.sweep.models[slot.model].name,
            "shard": slot.shard and slot.shard.described(self.sweep),
            "tokens_per_s": slot.tokens / slot.busy_s if slot.busy_s else None,
            "gpu_bytes": slot.pulse and slot.pulse.gpu_bytes,
        }
