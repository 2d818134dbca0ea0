"""The `mesa-lm leaderboard` command; everything heavy is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesa_lm.cli.choices import print_choices
from mesa_lm.cli.damage import refuse_damage, report_damage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesa_lm.reporting.leaderboard_table import Board, Column
    from mesa_lm.reporting.ranking import Entry

ROW_NAMES = ("#", "method")  # the columns that every part of a wide table begins with
WIDEST_METHOD = 28  # characters; longer ones are broken
STYLES = {"better": "green", "worse": "red", "gone": "red", "failed": "red"}


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
    space: Annotated[
        Path | None,
        typer.Option(
            help="Write a folder that a Hugging Face Space or GitHub Pages serves as it is.", show_default=False
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="RESULTS are of several people: what two of them have stays two rows, named by folder."
        ),
    ] = False,
    choose: Annotated[
        list[Path] | None,
        typer.Option(
            help="Choose each method's setting by these results, and report it on RESULTS, of other samples; may be "
            "given again.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="With --choose: the metric. Default: acc, tail_nll or nll.", show_default=False),
    ] = None,
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

    If no file is asked for, prints tables: Markdown, unless in a terminal.
    """
    from mesa_lm.errors import UsageError
    from mesa_lm.reporting.changes import changes
    from mesa_lm.reporting.leaderboard_files import render_markdown, save_leaderboard
    from mesa_lm.reporting.leaderboard_space import save_space
    from mesa_lm.reporting.leaderboard_table import boards
    from mesa_lm.reporting.merging import read_merged
    from mesa_lm.reporting.ranking import rank, unable_tasks
    from mesa_lm.reporting.results import read

    if fail_on_regression and not baseline:
        raise UsageError("--fail-on-regression needs results to compare with; give --baseline")
    wanted = {".html": html, ".md": md, ".csv": csv, ".json": json}
    for suffix, path in wanted.items():
        if path is not None and path.suffix != suffix:
            raise UsageError(f"--{suffix[1:]} needs a file that ends in {suffix}, found {path}")
    if merge and baseline:
        raise UsageError("--merge goes without --baseline: the two name methods in different ways")
    if by is not None and not choose:
        raise UsageError("--by goes with --choose")
    if choose:
        if baseline or merge or space or any((html, md, csv)):
            raise UsageError("--choose goes with --json alone; leave the others out")
        print_choices(choose, results, by, json, strict)
        return
    found = [read_merged(results) if merge else read(results), *([read(baseline)] if baseline else [])]
    ranked = [rank(one) for one in found]
    if not ranked[0]:
        raise UsageError("nothing to rank in these results: found only costs, or metrics whose direction is unknown")
    problems = [problem for one in found for problem in one.problems]
    problems += [problem for entries in ranked for entry in entries for problem in entry.problems]
    if strict:
        refuse_damage(problems)
    changed = changes(ranked[0], ranked[1] if baseline else [])
    paths = [path for path in wanted.values() if path is not None]
    for path in paths:
        save_leaderboard(changed, path, found[0].files)
        print(path)
    if space is not None:
        save_space(changed, space, found[0].files)
        print(space)
    if not paths and space is None:
        if sys.stdout.isatty():
            _print_boards(list(boards(changed)))
            _print_overall([change.now for change in changed if change.now])
        else:
            print(render_markdown(changed), end="")
    for note in unable_tasks(ranked[0]):
        typer.echo(note, err=True)
    regressions = [change for change in changed if change.is_regression]
    for change in regressions:
        entry = change.entry
        why = f": {'; '.join(change.reasons)}" if change.reasons else ""
        typer.echo(f"{change.kind}: {entry.method} on {entry.task}, {entry.model}{why}", err=True)
    report_damage(problems)
    if fail_on_regression and regressions:
        raise typer.Exit(1)


def _print_boards(shown: Sequence[Board]) -> None:
    """Print every table, one that is wider than the terminal in parts."""
    console = Console()
    for board in shown:
        console.print(Text(f"{board.model}: {board.task}, {board.metric}", style="bold"))
        names = [column for column in board.columns if column.title in ROW_NAMES]
        for part in _parts([column for column in board.columns if column.title not in ROW_NAMES], names, console.width):
            table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
            for column in part:
                is_text = column.title in ("method", "kind", "change")
                table.add_column(
                    Text(column.title.replace(" ", "\n")),
                    justify="left" if is_text else "right",
                    max_width=WIDEST_METHOD if column.title == "method" else None,
                    no_wrap=not is_text,
                )
            for row in range(len(board.changes)):
                cells = [column.cells[row] for column in part]
                table.add_row(*(Text(cell.text, style=STYLES.get(cell.kind, "")) for cell in cells))
            console.print(table)
        for change, cell in zip(board.changes, names[-1].cells, strict=True):
            for note in (*cell.notes, *cell.warnings, *change.reasons):
                console.print(Text(f"  {change.entry.method}: {note}"))
        console.print()


def _print_overall(entries: Sequence[Entry]) -> None:
    """Print the table over all tasks of each model that has several."""
    from mesa_lm.reporting.overall import OVERALL_COLUMNS, overall_tables

    console = Console()
    for overall in overall_tables(entries):
        console.print(Text(f"{overall.model}: all tasks", style="bold"))
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for title in OVERALL_COLUMNS:
            table.add_column(title.replace(" ", "\n"), justify="left" if title == "method" else "right")
        for place, row in enumerate(overall.rows, start=1):
            table.add_row(*map(Text, row.texts(place)))
        console.print(table)


def _parts(columns: Sequence[Column], names: Sequence[Column], width: int) -> list[list[Column]]:
    """Return columns in as few parts as fit a width, each with those that name its rows."""

    def needed(column: Column) -> int:
        longest = max(map(len, [*column.title.split(), *(cell.text for cell in column.cells)]))
        return min(longest, WIDEST_METHOD) + 3

    parts = [list(names)]
    for column in columns:
        if sum(map(needed, parts[-1])) + needed(column) > width and len(parts[-1]) > len(names):
            parts.append(list(names))
        parts[-1].append(column)
    return parts
