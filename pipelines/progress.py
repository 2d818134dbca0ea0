"""Show how far a sweep is: live on a terminal, as log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from mesa_lm.pipelines.outcome import Outcome
from mesa_lm.pipelines.shards import Shard

LINE_EVERY_S = 30.0


class Progress:
    """Shards done, running and failed, and when the rest will be done."""

    def __init__(self, total: int, done: int, cost: int) -> None:
        """Begin.

        Args:
            total: Number of shards, those included that an earlier run finished.
            done: Number of those.
            cost: Of the others, in tokens.
        """
        self.total, self.cost = total, cost
        self.start, self.last = time.monotonic(), 0.0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        eta = TextColumn("ETA {task.fields[eta]}")
        self.bar = Bar(*columns, eta, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self.shards = self.bar.add_task("shards", total=total, completed=done, eta="?")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.bar.stop()

    def show(self, running: Sequence[Shard], outcome: Outcome, left: int) -> None:
        """Show where the sweep is.

        Args:
            running: Shards at work.
            outcome: What was finished so far.
            left: Cost of all that is not finished, in tokens.
        """
        failed = len(outcome.failed) + len(outcome.out_of_memory)
        text, eta = f"{len(running)} running, {failed} failed", self._eta(left)
        self.bar.update(self.shards, completed=outcome.done + failed, description=text, eta=eta)
        now = time.monotonic()
        if self.bar.disable and (now - self.last >= LINE_EVERY_S or outcome.done + failed == self.total):
            self.last = now
            print(f"{outcome.done} of {self.total} shards done, {text}, ETA {eta}", file=sys.stderr, flush=True)

    def _eta(self, left: int) -> str:
        """Return how long the rest will take if its tokens take as long as those so far."""
        finished = self.cost - left
        if not finished:
            return "?"
        return str(timedelta(seconds=round((time.monotonic() - self.start) / finished * left)))
