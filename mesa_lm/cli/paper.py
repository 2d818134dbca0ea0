"""The `mesa-lm paper` command; everything heavy is imported when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mesa_lm.cli.damage import report_damage
from mesa_lm.errors import UsageError

Exhibit = Literal[
    "figure-3", "figure-4", "figure-5", "figure-7", "figure-8", "figure-9", "figure-10", "table-1", "table-2", "table-3"
]


def paper(
    exhibit: Annotated[Exhibit, typer.Argument(metavar="EXHIBIT", help="figure-3 to 5, 7 to 10, table-1 to 3.")],
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Results of the sweeps in pipelines/paper, of `lm_eval --output_path` or of `mesa-lm bench`.",
            show_default=False,
        ),
    ],
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV file with more of the paper's numbers; may be given again. See docs/suites.md.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File of a figure: .png, .svg or .pdf. Default: ./EXHIBIT.png.", show_default=False),
    ] = None,
) -> None:
    """Draw a figure or print a table of the Mesa paper from results of your own, beside the paper's numbers.

    Of the paper's numbers those are there that could be established; the others are said to be not available.
    """
    from mesa_lm.reporting.figure_style import save_figure
    from mesa_lm.reporting.lm_eval_files import read_files
    from mesa_lm.reporting.paper_figures import FIGURES, paper_figure
    from mesa_lm.reporting.paper_numbers import PaperNumbers
    from mesa_lm.reporting.paper_tables import paper_table
    from mesa_lm.reporting.results import read

    numbers = PaperNumbers(exhibit, beside or [])
    if exhibit in FIGURES:
        found = read(results)
        path = out or Path(f"{exhibit}.png")
        save_figure(paper_figure(exhibit, found, numbers), path)
        print(path)
        report_damage(found.problems)
        return
    if out is not None:
        raise UsageError(f"{exhibit} is printed as a table; leave --out away")
    files, problems = read_files(results)
    print(paper_table(exhibit, files, numbers), end="")
    report_damage(problems)
