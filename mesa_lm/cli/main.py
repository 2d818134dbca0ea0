"""The `mesa-lm` command and its subcommands. Evaluation itself is the stock `lm_eval` command."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mesa_lm import __version__
from mesa_lm.cli.bench import bench
from mesa_lm.cli.compare import compare
from mesa_lm.cli.leaderboard import leaderboard
from mesa_lm.cli.methods import methods
from mesa_lm.cli.nightly import nightly
from mesa_lm.cli.paper import paper
from mesa_lm.cli.plot import plot
from mesa_lm.cli.probe import probe
from mesa_lm.cli.status import status
from mesa_lm.cli.sweep import sweep
from mesa_lm.cli.theory import theory
from mesa_lm.cli.track import track
from mesa_lm.errors import MesaError, unknown_name

# What typer raises for a wrong command line, wherever it keeps the class.
WrongUsage: type[Exception] = typer.BadParameter.__bases__[0]


BOUNDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}


class Commands(TyperGroup):
    """The commands, with one line on stderr for a wrong command line."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line: exit status 2 where it is wrong, 130 where it is interrupted."""
        is_main = options.get("standalone_mode", True)
        try:
            result = super().main(*args, **(options | {"standalone_mode": False}))
        except (typer.Abort, WrongUsage) as error:
            if not is_main:
                raise
            if isinstance(error, typer.Abort):
                sys.exit(130)
            print(usage_text(error), file=sys.stderr)
            sys.exit(2)
        if is_main:
            sys.exit(result or 0)
        return result


def usage_text(error: Any) -> str:
    """Return what to say of a wrong command line: one line, or the help where nothing was given.

    Args:
        error: What typer raised.
    """
    shown = str(error.format_message())
    if error.ctx is not None and shown == error.ctx.get_help():
        return shown
    # Where typer leaves it to pydantic, its words are about Python.
    found: list[Any] = getattr(error.__cause__, "errors", list)()
    if found:
        option, value, limits = "/".join(error.param.opts), found[0]["input"], found[0].get("ctx", {})
        choices = re.findall("'([^']*)'", str(limits.get("error", "")))[1:]
        if choices:
            shown = unknown_name(option, str(value), choices)
        else:
            shown = f"{option} must be {_in_words(found[0]['type'], limits)}, found {value!r}"
    path = error.ctx.command_path if error.ctx else "mesa-lm"
    return f"error: {' '.join(shown.split())} (see {path} --help)"


def _in_words(kind: str, limits: Mapping[str, Any]) -> str:
    """Return what pydantic's kinds of errors say that a value must be."""
    if kind.startswith("int"):
        return "a whole number"
    if kind.startswith("bool"):
        return "true or false"
    bounds = [f"{words} {limits[key]}" for key, words in BOUNDS.items() if key in limits]
    return " ".join(["a number", *bounds])


app = typer.Typer(
    cls=Commands,
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


for command in (plot, compare, leaderboard, paper, probe, bench, methods, theory, sweep, nightly, status, track):
    app.command()(command)
