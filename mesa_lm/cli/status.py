"""The command `mesa-lm status`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mesa_lm.cli.extras import pipelines_needed


def status(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a sweep.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show how far a sweep is, and what failed why."""
    with pipelines_needed():
        from mesa_lm.pipelines.status import STATES, sweep_status
    found = sweep_status(folder)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("model", "method", "task", *STATES, title=found["sweep"])
    for cell in found["cells"]:
        table.add_row(*map(str, cell.values()))
    Console().print(table)
    print("a sweep is at work" if found["running"] else "no sweep is at work")
    for failure in found["failures"]:
        print(f"failed: {failure['where']}: {failure['error']} (log: logs/{failure['shard']}.log)")
