"""The command `mesa-lm status`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mesa_lm.cli.extras import pipelines_needed


def status(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a sweep.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show how far a sweep is, and what failed why."""
    with pipelines_needed():
        from mesa_lm.pipelines import command
    found = command.status(folder, as_json)
    if as_json:
        print(json.dumps(found, indent=2))
