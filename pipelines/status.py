"""How far a sweep is, from what it keeps on disk."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mesa_lm.pipelines.progress import STATE
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store

STATES = ("done", "missing", "failed", "oom")
FRESH_S = 60.0  # the age up to which what the driver said of itself is taken to be true


class SweepFolder:
    """The folder of a sweep, which is only read."""

    def __init__(self, folder: Path) -> None:
        """Read the plan.

        Args:
            folder: Its output folder.

        Raises:
            UsageError: It is not one of a sweep.
        """
        self.store = Store(folder)
        planned = self.store.read("plan")
        self.sweep = Sweep.model_validate(planned["sweep"])
        self.shards = [Shard(**content) for content in planned["shards"]]

    def status(self) -> dict[str, Any]:
        """Return how far the sweep is.

        Returns:
            `sweep`, its name; `running`, whether one is at work; `progress`, what it says of itself, see `Snapshot`, or
            None; `cells`, for each model, method and task of lm-eval the number of shards in each of `STATES`; and
            `failures`, each with key, what it is, and error.
        """
        counted: dict[tuple[str, str, str], Counter[str]] = {}
        errors: list[dict[str, str]] = []
        stored, failed = self.store.stored_keys(), self.store.failed_keys()
        for shard in self.shards:
            cell = (self.sweep.models[shard.model].name, self.sweep.methods[shard.method].label, shard.leaf)
            failure = self.store.read_failure(shard.key) if shard.key in failed - stored else None
            state = "done" if shard.key in stored else failure["status"] if failure else "missing"
            counted.setdefault(cell, Counter())[state] += 1
            if failure and state == "failed":
                errors.append({"shard": shard.key, "where": shard.described(self.sweep), "error": failure["error"]})
        cells = [
            {"model": model, "method": method, "task": leaf, **{name: states[name] for name in STATES}}
            for (model, method, leaf), states in sorted(counted.items())
        ]
        progress, running = self._progress(), self.store.in_use()
        if running is None:  # the folder may only be read
            running = progress is not None
        shown = progress if running else None
        return {"sweep": self.sweep.name, "running": running, "progress": shown, "cells": cells, "failures": errors}

    def _progress(self) -> dict[str, Any] | None:
        """Return what the driver last said of itself, unless that was long ago."""
        try:
            said: dict[str, Any] = json.loads((self.store.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return said if time.time() - said["time"] < FRESH_S else None
