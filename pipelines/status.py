"""How far a sweep is, from what it keeps on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store

STATES = ("done", "missing", "failed", "oom")


def sweep_status(folder: Path) -> dict[str, Any]:
    """Return how far a sweep is.

    Args:
        folder: Its output folder.

    Returns:
        `sweep`, its name; `running`, whether one is at work; `cells`, for each model, method and task of lm-eval the
        number of shards in each of `STATES`; and `failures`, each with key, what it is, and error.

    Raises:
        UsageError: The folder is not one of a sweep.
    """
    store = Store(folder)
    planned = store.read("plan")
    sweep = Sweep.model_validate(planned["sweep"])
    counted: dict[tuple[str, str, str], Counter[str]] = {}
    errors: list[dict[str, str]] = []
    for shard in (Shard(**content) for content in planned["shards"]):
        cell = (sweep.models[shard.model].name, sweep.methods[shard.method].label, shard.leaf)
        failure = store.read_failure(shard.key)
        state = "done" if store.read_shard(shard.key) else failure["status"] if failure else "missing"
        counted.setdefault(cell, Counter())[state] += 1
        if failure and state == "failed":
            errors.append({"shard": shard.key, "where": shard.described(sweep), "error": failure["error"]})
    cells = [
        {"model": model, "method": method, "task": leaf, **{name: states[name] for name in STATES}}
        for (model, method, leaf), states in sorted(counted.items())
    ]
    return {"sweep": sweep.name, "running": store.in_use(), "cells": cells, "failures": errors}
