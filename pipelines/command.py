"""What `mesa-lm sweep` and `mesa-lm status` do."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mesa_lm.lengths import length_label
from mesa_lm.pipelines.config import Sweep, load
from mesa_lm.pipelines.plan import Shard, plan
from mesa_lm.pipelines.store import Store, quiet

# A rough rate to turn tokens into hours, of a 7B model in half precision on one data-centre GPU.
TOKENS_PER_S = 5_000.0
SHOWN_ALIKE = 3  # shards that failed for the same reason, of which the summary names so many


def sweep(
    path: Path, overrides: Sequence[str], out: Path | None, address: str | None, dry_run: bool, tokens_per_s: float
) -> int:
    """Run a sweep, or print its plan.

    Returns:
        0 if every shard is done, 1 if some failed or results could not be written. Running out of memory is a result,
        not a failure.
    """
    configuration = load(path, [*overrides, *([f"out={out}"] if out else [])])
    if dry_run:
        with tempfile.TemporaryDirectory() as folder, quiet(Path(folder) / "log"):
            shards = plan(configuration)
        _print_plan(configuration, shards, tokens_per_s)
        return 0
    from mesa_lm.pipelines.run import run
    from mesa_lm.pipelines.tracking import Target, log_results

    try:
        outcome = run(configuration, address)
    except KeyboardInterrupt:
        kept = Store(configuration.out).count_shards()
        print(
            f"interrupted: {kept} finished shards are kept in {configuration.out}; the same command goes on from there",
            file=sys.stderr,
        )
        raise
    if configuration.wandb is not None and outcome.results:
        target = Target(group=configuration.name, folder=configuration.out / "tracking", **dict(configuration.wandb))
        log_results([configuration.out / "results"], target)
    print(
        f"{outcome.done} shards done, {outcome.reused} of them by an earlier run; {len(outcome.failed)} failed, "
        f"{len(outcome.out_of_memory)} out of memory"
    )
    alike: dict[str, list[Shard]] = {}
    for shard, error in outcome.failed.items():
        alike.setdefault(error, []).append(shard)
    for error, failed in alike.items():
        for shard in failed[:SHOWN_ALIKE]:
            print(f"failed: {_named(configuration, shard)}: {error} (log: logs/{shard.key}.log)", file=sys.stderr)
        if len(failed) > SHOWN_ALIKE:
            print(f"failed: {len(failed) - SHOWN_ALIKE} more shards: {error}", file=sys.stderr)
    for what, error in outcome.unwritten.items():
        print(f"not written: {what}: {error}; the shards are kept, run the sweep again", file=sys.stderr)
    for result in outcome.results:
        print(result)
    return 1 if outcome.failed or outcome.unwritten else 0


def status(folder: Path, as_json: bool) -> dict[str, Any]:
    """Return how far a sweep is, and print it as tables unless asked not to.

    Raises:
        UsageError: The folder is not one of a sweep.
    """
    store = Store(folder)
    planned = store.read("plan")
    configuration = Sweep.model_validate(planned["sweep"])
    counted: dict[tuple[str, str, str], Counter[str]] = {}
    errors: list[dict[str, str]] = []
    for shard in (Shard(**content) for content in planned["shards"]):
        cell = (configuration.models[shard.model].name, configuration.methods[shard.method].label, shard.leaf)
        failure = store.read_failure(shard.key)
        state = "done" if store.read_shard(shard.key) else failure["status"] if failure else "missing"
        counted.setdefault(cell, Counter())[state] += 1
        if failure and state == "failed":
            errors.append({"shard": shard.key, "where": _named(configuration, shard), "error": failure["error"]})
    rows = [
        {"model": model, "method": method, "task": leaf, **{name: states[name] for name in STATES}}
        for (model, method, leaf), states in sorted(counted.items())
    ]
    found = {"sweep": configuration.name, "running": store.in_use(), "cells": rows, "failures": errors}
    if not as_json:
        table = Table("model", "method", "task", *STATES, title=configuration.name)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        Console().print(table)
        print("a sweep is at work" if found["running"] else "no sweep is at work")
        for error in errors:
            print(f"failed: {error['where']}: {error['error']} (log: logs/{error['shard']}.log)")
    return found


STATES = ("done", "missing", "failed", "oom")


def _print_plan(configuration: Sweep, shards: Sequence[Shard], tokens_per_s: float) -> None:
    table = Table("model", "method", "task", "length", "shards", "samples", "tokens", title=configuration.name)
    cells: dict[tuple[int, int, str], list[Shard]] = {}
    for shard in shards:
        cells.setdefault((shard.model, shard.method, shard.leaf), []).append(shard)
    for (model, method, leaf), members in sorted(cells.items(), key=lambda cell: (cell[0][:2], cell[1][0].length or 0)):
        length = members[0].length
        table.add_row(
            configuration.models[model].name,
            configuration.methods[method].label,
            leaf,
            length_label(length) if length else "",
            str(len(members)),
            str(sum(shard.stop - shard.start for shard in members)),
            f"{sum(shard.cost for shard in members):,}",
        )
    Console().print(table)
    tokens = sum(shard.cost for shard in shards)
    hours = tokens / tokens_per_s / 3600
    done = sum(Store(configuration.out).read_shard(shard.key) is not None for shard in shards)
    print(
        f"{len(shards)} shards, {done} of them done; {tokens:,} tokens, about {hours:.1f} GPU-hours "
        f"at {tokens_per_s:,.0f} tokens per second"
    )


def _named(configuration: Sweep, shard: Shard) -> str:
    model, method = configuration.models[shard.model].name, configuration.methods[shard.method].label
    return f"{model}, {method}, {shard.leaf}, samples {shard.start} to {shard.stop - 1}"
