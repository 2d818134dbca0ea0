"""The command `mesa-lm compare`."""

import json
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


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
    from mesa_lm.reporting.comparison import compare_methods, read_side

    sides = [read_side(argument).where(metric=metric, task=task) for argument in (first, second)]
    rows = sorted(compare_methods(*sides), key=lambda row: (row.task, row.metric, row.length))
    if as_json:
        print(json.dumps([row._asdict() for row in rows], indent=2))
        return
    for (name, measured, test), group in groupby(rows, key=lambda row: (row.task, row.metric, row.test)):
        table = Table("tokens", "samples", "A", "B", "B - A", "95 %", "p", title=f"{name}, {measured} ({test})")
        for row in group:
            table.add_row(
                str(row.length),
                f"{row.samples} (+{row.unmatched} unpaired)" if row.unmatched else str(row.samples),
                f"{row.first:.4g}",
                f"{row.second:.4g}",
                f"{row.second - row.first:+.4g}",
                "{:+.3f} to {:+.3f}".format(*row.difference) if row.difference else "",
                f"{row.p_value:.2g}",
            )
        Console().print(table)
    a, b = (side.table.iloc[0] for side in sides)
    print(f"A: {a.method} of {a.model}   B: {b.method} of {b.model}")
