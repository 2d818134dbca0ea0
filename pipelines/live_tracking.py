"""Log a sweep to Weights & Biases while it runs: how far it is, and every model and method length by length.

W&B is spoken to by a thread of its own, so that nothing of it ever holds up the sweep. At the end the runs of models
and methods are logged once more as a whole (`mesa_lm.pipelines.tracking`), which replaces what was filled in here.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.progress import Snapshot
from mesa_lm.pipelines.tracking import Target, open_run
from mesa_lm.pipelines.wandb_content import log_lengths
from mesa_lm.reporting.results import Results, read

logger = logging.getLogger(__name__)

ANSWER_S = 10  # for W&B's answer, at the start of a sweep
LOG_EVERY_S = 15.0
CLOSE_S = 30.0
MOST_RUNS = 100  # models and methods that are filled in live; each is a stream of W&B's
GIB = 2**30


class LiveTracking:
    """A sweep's own run, and one per model and method that fills as lengths are merged."""

    def __init__(self, target: Target) -> None:
        """Begin.

        Args:
            target: Where to log. What is online falls back to offline, for the whole sweep, where W&B does not answer.
        """
        self.target = replace(target, mode=settled_mode(target))
        self._events: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self._shown = float("-inf")
        self._runs: dict[tuple[str, str], Any] = {}
        self._thread = threading.Thread(target=self._work, daemon=True, name="wandb")
        self._thread.start()

    def merged(self, results: Path, leaves: Sequence[str]) -> None:
        """Take in that a results file has more leaves now."""
        self._events.put(("merged", (results, tuple(leaves))))

    def show(self, now: Snapshot) -> None:
        """Take in where the sweep is; every now and then it is logged."""
        if time.monotonic() - self._shown >= LOG_EVERY_S or now.done == now.total:
            self._shown = time.monotonic()
            self._events.put(("shown", now))

    def close(self) -> None:
        """End the runs, in a bounded time."""
        self._events.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("W&B: the runs of the running sweep were not sent in time; results are on disk")

    def _work(self) -> None:
        """Log what comes in; one failure ends it, as everything is logged again at the end."""
        try:
            own = None  # a sweep that is wrong begins no run
            while (event := self._events.get()) is not None:
                what, content = event
                own = own or open_run(self.target, str(self.target.mode), "sweep", (), f"sweep {self.target.group}")
                if what == "shown":
                    own.log(_metrics(content))
                else:
                    self._log_merged(*content)
            for run in filter(None, (*self._runs.values(), own)):
                run.finish()
        except Exception as error:  # whatever W&B raises: an evaluation must not fail with it
            logger.warning("W&B: the sweep is not logged while it runs (%s: %s)", type(error).__name__, error)

    def _log_merged(self, path: Path, leaves: Sequence[str]) -> None:
        """Log the new leaves of a results file; of a model and method that has no run yet, all that is there."""
        try:
            found = read([path])
        except UsageError:
            return  # no task of it names a length
        model, method = found.table.iloc[0][["model", "method"]]
        run = self._runs.get((model, method))
        if run is not None:
            log_lengths(run, found.table[found.table.name.isin(leaves)])
        elif len(self._runs) < MOST_RUNS:
            names = (model, method)
            run = open_run(self.target, str(self.target.mode), "eval", names, f"{Path(model).name} {method}", names)
            self._runs[model, method] = run
            log_lengths(run, _all_of(path, model, method, found).table)


def _all_of(path: Path, model: str, method: str, found: Results) -> Results:
    """Return everything of a model and method in a sweep's results, of which one file is given."""
    number = path.parents[1].name.rpartition("-")[0]
    folders = [folder for folder in path.parents[2].glob(f"{number}-*") if any(folder.rglob("results_*.json"))]
    return read(folders).where(model=model, method=method) if folders else found


def _metrics(now: Snapshot) -> dict[str, Any]:
    """Return what is logged of a moment."""
    logged: dict[str, Any] = {
        f"shards/{name}": getattr(now, name) for name in ("done", "failed", "out_of_memory", "running", "waiting")
    }
    logged |= {"tokens_per_s": now.tokens_per_s, "workers": len(now.workers)}
    if now.eta_s is not None:
        logged |= {"eta_s": now.eta_s, "estimated_end": now.time + now.eta_s}
    for worker in now.workers:
        name = f"worker/{str(worker['node'])[:8]}-{worker['pid']}"
        values = {"tokens_per_s": worker["tokens_per_s"], "gpu_gib": worker["gpu_bytes"] and worker["gpu_bytes"] / GIB}
        logged |= {f"{name}/{key}": value for key, value in values.items() if value is not None}
    return logged


def settled_mode(target: Target) -> str:
    """Return the mode in which to log: offline where W&B, asked once, does not answer within `ANSWER_S`."""
    mode = target.resolved_mode
    if mode != "online":
        return mode
    import wandb

    address = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
    asked = b'{"query": "{ serverInfo { cliVersionInfo } }"}'
    question = urllib.request.Request(f"{address.rstrip('/')}/graphql", asked, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(question, timeout=ANSWER_S) as answer:
            answer.read(1)
        return mode
    except (OSError, ValueError) as error:  # HTTP errors are OSErrors
        if isinstance(error, urllib.error.HTTPError) and error.code < 500:
            return mode  # it answers; what it thinks of the key is said by W&B itself
        logger.warning("W&B does not answer, logging offline (%s); send it later by wandb sync", error)
        return "offline"
