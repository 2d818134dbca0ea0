"""The `mesa-lm` command: plot results and list the methods. Evaluation itself is the stock `lm_eval` command."""

import importlib
import importlib.util
import json
import logging
import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from mesa_lm import __version__
from mesa_lm.bench.command import bench
from mesa_lm.errors import MesaError, UsageError
from mesa_lm.leaderboard.command import leaderboard
from mesa_lm.method_list import methods
from mesa_lm.probe.command import probe
from mesa_lm.theory.cli import theory

app = typer.Typer(
    help="Tools around extrapolation methods; evaluate them with `lm_eval --model mesa-hf`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line: exit status 2 and one line on stderr for wrong input."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        app(prog_name="mesa-lm")
    except MesaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options of the command itself."""


@app.command()
def plot(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Results files of `lm_eval --output_path`, or folders that hold some.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to draw: .png, .svg or .pdf. Default: ./TASK_METRIC.png.", show_default=False),
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric to draw.")] = "acc",
    task: Annotated[
        str | None, typer.Option(help="Task group to draw, where the results hold several.", show_default=False)
    ] = None,
    by: Annotated[
        Literal["length", "depth", "position"],
        typer.Option(help="Draw against input length; depth and length (passkey_grid); position (long_ppl)."),
    ] = "length",
    length: Annotated[
        int | None,
        typer.Option(help="With --by position: the input length. Default: the longest.", show_default=False),
    ] = None,
) -> None:
    """Draw a metric against input length, depth or position.

    One line or heat map per model and method, with 95% confidence intervals. Of several results of one model, method,
    task and length the newest is drawn. Prints the path of the picture.
    """
    from mesa_lm import panels
    from mesa_lm.plots import draw
    from mesa_lm.results import read, select

    if length is not None and by != "position":
        raise UsageError("--length goes with --by position only")
    found = read(results)
    cells = select(found, "nll" if by == "position" else metric, task)
    name = cells[0].task
    path = out or Path(f"{name}_{metric}.png" if by == "length" else f"{name}_{by}.png")
    same_task = [cell for cell in found if cell.task == name]
    if by == "depth":
        panels.draw_depths(same_task, metric, path)
    elif by == "position":
        panels.draw_positions(same_task, path, length)
    else:
        draw(cells, path, same_task)
    print(path)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Results of one method: a file, or a folder.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Results of the other, evaluated on the same samples.")],
    metric: Annotated[str | None, typer.Option(help="Compare this metric only.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="Compare this task group only.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare two methods sample by sample, at every length that both were evaluated at.

    Needs results of `lm_eval --log_samples`. Where a folder holds several methods, name one: `FOLDER::METHOD`. Samples
    that score 0 or 1 are compared by McNemar's exact test, others by a paired bootstrap.
    """
    from mesa_lm.compare import compare as compared
    from mesa_lm.compare import side

    sides = [
        [cell for cell in side(argument) if metric in (None, cell.metric) and task in (None, cell.task)]
        for argument in (first, second)
    ]
    rows = sorted(compared(*sides), key=lambda row: (row.task, row.metric, row.length))
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
                "{:+.3f} to {:+.3f}".format(*row.difference),
                f"{row.p_value:.2g}",
            )
        Console().print(table)
    print(f"A: {sides[0][0].method} of {sides[0][0].model}   B: {sides[1][0].method} of {sides[1][0].model}")


app.command()(leaderboard)
app.command()(probe)


app.command()(bench)


app.command()(methods)
app.command()(theory)


@app.command()
def sweep(
    configuration: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see docs/pipeline.md.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting: name=value; may be given again.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder, instead of the file's.", show_default=False)] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: auto, or ray://HOST:10001. Default: one on this machine.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the shards and what they cost, and stop.")] = False,
    tokens_per_s: Annotated[
        float, typer.Option(min=1, help="Tokens per second and GPU, for the estimate of --dry-run.")
    ] = 5000.0,
) -> None:
    """Evaluate models x methods x tasks x lengths on a Ray cluster.

    What an earlier run finished is not run again. Exit status 1 if a shard failed for good.
    """
    command = _pipelines("command")
    raise typer.Exit(command.sweep(configuration, overrides or [], out, address, dry_run, tokens_per_s))


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of a sweep.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show how far a sweep is, and what failed why."""
    found = _pipelines("command").status(folder, as_json)
    if as_json:
        print(json.dumps(found, indent=2))


@app.command()
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

    Logging again replaces what was logged before. Offline runs are sent later by `wandb sync`.
    """
    tracking = _pipelines("tracking")
    target = tracking.Target(project=project, group=group, folder=folder, entity=entity, mode=mode)
    for name in tracking.track(results, target):
        print(name)


def _pipelines(name: str) -> Any:
    """Import a module of the pipelines.

    Raises:
        UsageError: What it needs is not installed.
    """
    try:
        return pipelines_module(name)
    except ImportError as error:
        raise UsageError(f'this command needs {error.name}: pip install "mesa-lm[pipelines]"') from error


def pipelines_module(name: str) -> Any:
    """Import a module of the pipelines, which lie inside the package in a wheel and beside it in a checkout.

    Raises:
        ImportError: It, or something that it needs, is not installed.
    """
    inside = importlib.util.find_spec("mesa_lm.pipelines") is not None
    return importlib.import_module(f"mesa_lm.pipelines.{name}" if inside else f"pipelines.{name}")
