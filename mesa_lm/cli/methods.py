"""The `mesa-lm methods` command; what it lists is taken from the methods' own declarations."""

from __future__ import annotations

import json
import sys
from inspect import formatannotation
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesa_lm.cli.options import refuse_duplicates
from mesa_lm.errors import MethodError, UsageError, unknown_name
from mesa_lm.methods.descriptions import describe
from mesa_lm.methods.parameters import allowed, declared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesa_lm.models.support import FamilyRow


def methods(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[METHOD]", help="Methods to describe in full. Default: a table of all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    families: Annotated[
        bool,
        typer.Option("--families", help="List the model families and their methods; Markdown, unless in a terminal."),
    ] = False,
) -> None:
    """List the methods, or describe some with source, model families and parameters.

    Of every parameter the default, the values that are allowed, and the meaning. With --families, a table of model
    families and methods instead, and why a cell is refused.
    """
    from mesa_lm.methods.registry import available_methods as known_methods
    from mesa_lm.models.support import family_markdown, family_rows

    chosen = names or []
    known = known_methods()
    for name in chosen:
        if name not in known:
            raise MethodError(unknown_name("method", name, known))
    refuse_duplicates("METHOD", chosen)
    rows = family_rows()
    if families:
        if chosen:
            raise UsageError(f"--families is of all methods; leave out {', '.join(chosen)}")
        if as_json:
            print(json.dumps([row._asdict() for row in rows], indent=2))
        elif sys.stdout.isatty():
            _print_families(rows)
        else:
            print(family_markdown(rows))
        return
    described = {
        name: {**describe_in_full(known[name]), "families": supported_families(name, rows)} for name in chosen or known
    }
    if as_json:
        print(json.dumps(described, indent=2))
    elif chosen:
        for name, about in described.items():
            _print_method(name, about, rows)
    else:
        _print_overview(described)


def supported_families(method: str, rows: Sequence[FamilyRow]) -> list[str]:
    """Return the model families that a method runs on, each once.

    A family of which it supports one kind of positions alone is named with that kind, as "baichuan (ALiBi)".
    """
    kinds: dict[str, list[FamilyRow]] = {}
    for row in rows:
        kinds.setdefault(row.model_type, []).append(row)
    names = []
    for family, members in kinds.items():
        supported = [row.position for row in members if row.refusals[method] is None]
        if supported:
            names.append(family if len(supported) == len(members) else f"{family} ({', '.join(supported)})")
    return names


def describe_in_full(method: type[Any]) -> dict[str, Any]:
    """Return a method's kind, purpose, source and parameters, taken from its docstring and fields."""
    types = get_type_hints(method)
    return {
        **describe(method)._asdict(),
        "parameters": {
            name: {
                "type": formatannotation(types[name]),
                "allowed": allowed(method, name),
                "default": getattr(method(), name),
                "rule": declaration.shown if declaration.rule else None,
                "help": declaration.text,
            }
            for name, declaration in declared(method).items()
        },
    }


def _print_overview(described: dict[str, dict[str, Any]]) -> None:
    """Print a line or two per method."""
    table = Table("method", "what it does", box=SIMPLE, pad_edge=False)
    for name, method in described.items():
        table.add_row(Text(name, "bold"), Text(method["purpose"].replace("`", "")))
    Console().print(table)
    print("`mesa-lm methods METHOD` shows parameters, source and model families of one.")


def _print_method(name: str, method: dict[str, Any], rows: Sequence[FamilyRow]) -> None:
    """Print all about a method."""
    console = Console()
    console.print(Text.assemble((name, "bold"), f": {method['purpose']}"))
    console.print(Text(f"kind: {method['kind']}"))
    console.print(Text(f"source: {method['source']}"))
    console.print(Text(f"model families: {', '.join(method['families'])}"))
    reasons = dict.fromkeys(reason for row in rows if (reason := row.refusals[name]) is not None)
    for reason in reasons:
        refused = dict.fromkeys(
            f"{row.model_type} ({row.position})" if row.position else row.model_type
            for row in rows
            if row.refusals[name] == reason
        )
        console.print(Text(f"not {', '.join(refused)}: {reason}"))
    table = Table()
    table.add_column("parameter", min_width=max(map(len, method["parameters"]), default=0))
    for title in ("default", "allowed", "meaning"):
        table.add_column(title)
    for parameter, about in method["parameters"].items():
        default = str(about["rule"] or about["default"])
        table.add_row(*map(Text, (parameter, default, about["allowed"], about["help"])))
    console.print(table if table.row_count else Text("no parameters"))
    console.print()


def _print_families(rows: Sequence[FamilyRow]) -> None:
    """Print a line or two per family, with the methods that it does not support and the number of the reason."""
    reasons = list(dict.fromkeys(reason for row in rows for reason in row.refusals.values() if reason is not None))
    table = Table("model type", "positions", "methods", "besides", box=SIMPLE, pad_edge=False)
    for row in rows:
        refused = {name: reasons.index(reason) + 1 for name, reason in row.refusals.items() if reason is not None}
        supported = [name for name in row.refusals if name not in refused]
        if not refused:
            told = "all"
        elif len(supported) == 1:
            told = f"{supported[0]} alone ({next(iter(refused.values()))})"
        else:
            told = "all but " + ", ".join(f"{name} ({number})" for name, number in refused.items())
        table.add_row(*map(Text, (row.model_type, row.position, told, row.about)))
    console = Console()
    console.print(table)
    for number, reason in enumerate(reasons, start=1):
        console.print(Text(f"({number}) {reason}"))
