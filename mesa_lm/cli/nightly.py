"""The command `mesa-lm nightly`; everything heavy is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mesa_lm.cli.extras import pipelines_needed
from mesa_lm.cli.sweep import ADDRESS, CONFIGURATION, OVERRIDES, evaluate


def nightly(
    configuration: Annotated[Path, CONFIGURATION],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    address: Annotated[str | None, ADDRESS] = None,
) -> None:
    """Do a night's whole job: sweep, track, compare with the last complete night, and keep a history.

    The file's `out` ends in the night, such as results/nightly/{date}; started again the same night, it goes on.
    Exit status 1 if a shard failed, or a method got worse than in the last complete night.
    """
    with pipelines_needed():
        from mesa_lm.errors import UsageError
        from mesa_lm.pipelines.nights import HISTORY, conclude_night
        from mesa_lm.pipelines.sweep_file import load_sweep
    settings = load_sweep(configuration, overrides or [])
    if not settings.out_is_dated:
        raise UsageError(
            f"{configuration}: out of a nightly job must end in a folder of the night's own, such as "
            f"{settings.out}/{{date}}; found {str(settings.out)!r}"
        )
    failed = evaluate(settings, address)
    try:
        changed = conclude_night(settings)
    except UsageError as error:
        print(f"nothing to compare: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    print(settings.out / "leaderboard.html")
    print(settings.out.parent / HISTORY)
    regressions = [change for change in changed if change.is_regression]
    for change in regressions:
        why = f": {'; '.join(change.reasons)}" if change.reasons else ""
        print(
            f"{change.kind}: {change.entry.method} on {change.entry.task}, {change.entry.model}{why}", file=sys.stderr
        )
    if failed or regressions:
        raise typer.Exit(1)
