"""The `mesa-lm leaderboard` command; everything heavy is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from mesa_lm.cli.damage import refuse_damage, report_damage


def leaderboard(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Results files of `lm_eval --output_path` and `mesa-lm bench`, or folders that hold some.",
            show_default=False,
        ),
    ],
    html: Annotated[Path | None, typer.Option(help="Write a page for the browser.", show_default=False)] = None,
    md: Annotated[Path | None, typer.Option(help="Write Markdown tables.", show_default=False)] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one line per entry and length.", show_default=False)] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON.", show_default=False)] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(help="Results to compare with, such as last night's; may be given again.", show_default=False),
    ] = None,
    fail_on_regression: Annotated[
        bool,
        typer.Option("--fail-on-regression", help="Exit with status 1 if a method got worse than in --baseline."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a damaged file. Default: leave it out, name it, exit with 1.")
    ] = False,
) -> None:
    """Rank the methods of every model and task by how far they carry it.

    Prints Markdown tables if no file is asked for.
    """
    from mesa_lm.errors import UsageError
    from mesa_lm.reporting.changes import changes
    from mesa_lm.reporting.leaderboard_files import render_markdown, save_leaderboard
    from mesa_lm.reporting.ranking import rank, unable_tasks
    from mesa_lm.reporting.results import read

    if fail_on_regression and not baseline:
        raise UsageError("--fail-on-regression needs results to compare with; give --baseline")
    wanted = {".html": html, ".md": md, ".csv": csv, ".json": json}
    for suffix, path in wanted.items():
        if path is not None and path.suffix != suffix:
            raise UsageError(f"--{suffix[1:]} needs a file that ends in {suffix}, found {path}")
    found = [read(paths) for paths in (results, baseline) if paths]
    boards = [rank(one) for one in found]
    if not boards[0]:
        raise UsageError("nothing to rank in these results: found only costs, or metrics whose direction is unknown")
    problems = [problem for one in found for problem in one.problems]
    problems += [problem for board in boards for entry in board for problem in entry.problems]
    if strict:
        refuse_damage(problems)
    changed = changes(boards[0], boards[1] if baseline else [])
    paths = [path for path in wanted.values() if path is not None]
    for path in paths:
        save_leaderboard(changed, path, found[0].files)
        print(path)
    if not paths:
        print(render_markdown(changed), end="")
    for note in unable_tasks(boards[0]):
        typer.echo(note, err=True)
    regressions = [change for change in changed if change.is_regression]
    for change in regressions:
        entry = change.entry
        why = f": {'; '.join(change.reasons)}" if change.reasons else ""
        typer.echo(f"{change.kind}: {entry.method} on {entry.task}, {entry.model}{why}", err=True)
    report_damage(problems)
    if fail_on_regression and regressions:
        raise typer.Exit(1)
