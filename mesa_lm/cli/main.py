"""The `mesa-lm` command and its subcommands. Evaluation itself is the stock `lm_eval` command."""

import logging
import sys
from typing import Annotated

import typer

from mesa_lm import __version__
from mesa_lm.cli.bench import bench
from mesa_lm.cli.compare import compare
from mesa_lm.cli.leaderboard import leaderboard
from mesa_lm.cli.methods import methods
from mesa_lm.cli.nightly import nightly
from mesa_lm.cli.plot import plot
from mesa_lm.cli.probe import probe
from mesa_lm.cli.status import status
from mesa_lm.cli.sweep import sweep
from mesa_lm.cli.theory import theory
from mesa_lm.cli.track import track
from mesa_lm.errors import MesaError

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


for command in (plot, compare, leaderboard, probe, bench, methods, theory, sweep, nightly, status, track):
    app.command()(command)
