"""The command `mesa-lm status`."""

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from mesa_lm.cli.extras import pipelines_needed

EVERY_S = 2.0


def status(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a sweep.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show a bar per method until the sweep ends.")] = False,
) -> None:
    """Show how far a sweep is, and what failed why."""
    with pipelines_needed():
        from mesa_lm.pipelines.status import STATES, SweepFolder
    looked_at = SweepFolder(folder)
    found = looked_at.status()
    if follow:
        with Live(_bars(found), console=Console(), refresh_per_second=2) as shown:
            while found["running"]:
                time.sleep(EVERY_S)
                found = looked_at.status()
                shown.update(_bars(found))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    if not follow:
        table = Table("model", "method", "task", *STATES, title=found["sweep"])
        for cell in found["cells"]:
            table.add_row(*map(str, cell.values()))
        Console().print(table)
    print("a sweep is at work" if found["running"] else "no sweep is at work")
    for failure in found["failures"]:
        print(f"failed: {failure['where']}: {failure['error']} (log: logs/{failure['shard']}.log)")


def _bars(found: Mapping[str, Any]) -> Group:
    """Return a bar for every model and method, and what the sweep says of itself."""
    counts: dict[tuple[str, str], list[int]] = {}
    for cell in found["cells"]:
        states = [cell["done"], cell["failed"] + cell["oom"], cell["missing"]]
        known = counts.setdefault((cell["model"], cell["method"]), [0, 0, 0])
        counts[cell["model"], cell["method"]] = [a + b for a, b in zip(known, states, strict=True)]
    table = Table("model", "method", "", "done", "of", "failed or out of memory", title=found["sweep"], box=None)
    for (model, method), (done, failed, missing) in counts.items():
        total = done + failed + missing
        bar = ProgressBar(total=total, completed=done + failed, width=30)
        table.add_row(model, method, bar, str(done), str(total), str(failed or ""))
    return Group(table, _said(found["progress"]))


def _said(progress: Mapping[str, Any] | None) -> str:
    """Return in one line what a sweep says of itself."""
    if progress is None:
        return ""
    told = [f"{len(progress['workers'])} workers", f"{progress['tokens_per_s']:,.0f} tokens/s"]
    taken = sum(worker["gpu_bytes"] or 0 for worker in progress["workers"])
    told += [f"{taken / 2**30:.1f} GiB of GPU memory"] if taken else []
    told += [f"ETA {timedelta(seconds=round(progress['eta_s']))}"] if progress["eta_s"] is not None else []
    told += [f"waiting for resources: {progress['lacking']}"] if progress["lacking"] else []
    return ", ".join(told)
