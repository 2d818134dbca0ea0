"""The command `mesa-lm compare`."""

import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesa_lm.cli.damage import report_damage

if TYPE_CHECKING:
    from mesa_lm.reporting.comparison import Comparison

DIRECTIONS = {True: "higher is better", False: "lower is better", None: "direction unknown"}


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Results of one method: a file, or a folder.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Results of the other, evaluated on the same samples.")],
    metric: Annotated[str | None, typer.Option(help="Compare this metric only.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="Compare this task group only.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare two methods sample by sample, at every length that both were evaluated at.

    Needs results of `lm_eval --log_samples`. Where a folder holds several methods, name one: `FOLDER::METHOD`. Samples
    that score 0 or 1 are compared by McNemar's exact test, others by a sign-flip test.
    """
    from mesa_lm.reporting.comparison import compare_methods, read_side, unable_pairs

    sides = [read_side(argument, metric, task) for argument in (first, second)]
    rows = sorted(compare_methods(*sides), key=lambda row: (row.model, row.task, row.metric, row.length))
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
    else:
        several = len({row.model for row in rows}) > 1
        for place, group in groupby(rows, key=lambda row: (row.model, row.task, row.metric, row.test)):
            _print_table(f"{place[0]}: " if several else "", list(group))
        for note in unable_pairs(rows):
            print(note)
        a, b = (side.table.method.iloc[0] for side in sides)
        models = [", ".join(sorted(set(side.table.model) & {row.model for row in rows})) for side in sides]
        models[1] = models[1] or ", ".join(sorted(set(sides[1].table.model)))
        print(f"A: {a} of {models[0]}   B: {b} of {models[1]}")
    report_damage([problem for side in sides for problem in side.problems])


def _print_table(prefix: str, rows: "list[Comparison]") -> None:
    """Print one metric of one task, a line per length."""
    shown = rows[0]
    title = f"{prefix}{shown.task}, {shown.metric}, {DIRECTIONS[shown.higher_is_better]} ({shown.test})"
    table = Table("tokens", "samples", "A", "B", "B - A", "95 %", "p", title=Text(title))
    for row in rows:
        table.add_row(
            str(row.length),
            f"{row.samples} (+{row.unmatched} unpaired)" if row.unmatched else str(row.samples),
            f"{row.first:.4g}",
            f"{row.second:.4g}",
            f"{row.second - row.first:+.4g}",
            "{:+.3g} to {:+.3g}".format(*row.difference) if row.difference else "",
            f"{row.p_value:.3g}",
        )
    Console().print(table)
