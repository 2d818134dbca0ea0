"""What commands do about damaged files: they show the others, name these, and exit with status 1."""

import sys
from collections.abc import Iterable

import typer

from mesa_lm.errors import UsageError


def refuse_damage(problems: Iterable[str]) -> None:
    """Stop at the first damaged file, as --strict asks.

    Raises:
        UsageError: There is one.
    """
    for problem in problems:
        raise UsageError(problem)


def report_damage(problems: Iterable[str]) -> None:
    """Name damaged files, at the end of a command that left them out.

    Raises:
        typer.Exit: There is one; the status is 1.
    """
    named = list(dict.fromkeys(problems))
    for problem in named:
        print(f"damaged, left out: {problem}", file=sys.stderr)
    if named:
        raise typer.Exit(1)
