"""The command `mesa-lm track`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mesa_lm.cli.damage import report_damage
from mesa_lm.cli.extras import pipelines_needed


def track(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS", help="Results files, or folders that hold some.", show_default=False),
    ],
    project: Annotated[str, typer.Option(help="W&B project.")] = "mesa-lm",
    group: Annotated[str, typer.Option(help="Name of these evaluations; their runs form a group.")] = "evaluations",
    entity: Annotated[str | None, typer.Option(help="W&B team or user.", show_default=False)] = None,
    folder: Annotated[Path, typer.Option(help="Local folder of the runs.")] = Path("tracking"),
    mode: Annotated[
        str | None,
        typer.Option(help="online or offline. Default: WANDB_MODE, else online with an API key.", show_default=False),
    ] = None,
) -> None:
    """Log results to Weights & Biases: a run per model and method, and the leaderboard.

    Logging again replaces what was logged before. Offline runs are sent later by `wandb sync`. Exit status 1 if a run
    could not be logged.
    """
    with pipelines_needed():
        from mesa_lm.pipelines import tracking
    target = tracking.Target(project=project, group=group, folder=folder, entity=entity, mode=mode)
    target.check()
    logged = tracking.log_results(results, target)
    for name in logged.done:
        print(name)
    if logged.unchanged:
        print(f"logged before and unchanged: {', '.join(logged.unchanged)}", file=sys.stderr)
    if logged.failed:
        print(f"error: not logged: {', '.join(logged.failed)}", file=sys.stderr)
    report_damage(logged.problems)
    if logged.failed:
        raise typer.Exit(1)
