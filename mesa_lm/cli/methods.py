"""The `mesa-lm methods` command; what it lists is taken from the methods' own declarations."""

from __future__ import annotations

import json
from inspect import formatannotation, getdoc
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesa_lm.methods.parameters import declared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesa_lm.models.support import FamilyRow


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    families: Annotated[
        bool, typer.Option("--families", help="List which model families each method runs on, as Markdown.")
    ] = False,
) -> None:
    """List the methods with their parameters.

    Every method with its source and the model families it runs on, and every parameter with its default and meaning.
    With --families, a table of model families and methods instead, and why a cell is refused.
    """
    from mesa_lm.methods.registry import available_methods as known_methods
    from mesa_lm.models.support import family_markdown, family_rows

    rows = family_rows()
    if families:
        print(json.dumps([row._asdict() for row in rows], indent=2) if as_json else family_markdown(rows))
        return
    described = {
        name: {**describe(method), "families": _families(name, rows)} for name, method in known_methods().items()
    }
    if as_json:
        print(json.dumps(described, indent=2))
        return
    _print_tables(described)


def _families(method: str, rows: Sequence[FamilyRow]) -> list[str]:
    """Return the model families that a method runs on."""
    names = [
        (row, f"{row.model_type} ({row.position})" if row.model_type == "falcon" else row.model_type) for row in rows
    ]
    return [name for row, name in names if row.refusals[method] is None]


def describe(method: type[Any]) -> dict[str, Any]:
    """Return a method's purpose, source and parameters, taken from its docstring and fields."""
    purpose, *rest = (getdoc(method) or "").split("\n")
    types = get_type_hints(method)
    _, _, source = "\n".join(rest).partition("Source:")
    return {
        "purpose": purpose,
        "source": " ".join(source.split("\n\n")[0].split()),
        "parameters": {
            name: {
                "type": formatannotation(types[name]),
                "default": getattr(method(), name),
                "rule": declaration.shown if declaration.rule else None,
                "help": declaration.text,
            }
            for name, declaration in declared(method).items()
        },
    }


def _print_tables(described: dict[str, dict[str, Any]]) -> None:
    """Print the methods for a reader."""
    console = Console()
    for name, method in described.items():
        console.print(Text.assemble((name, "bold"), f": {method['purpose']}"))
        console.print(Text(f"source: {method['source']}"))
        console.print(Text(f"model families: {', '.join(method['families'])}"))
        table = Table("parameter", "default", "meaning")
        for parameter, about in method["parameters"].items():
            table.add_row(Text(parameter), Text(str(about["rule"] or about["default"])), Text(about["help"]))
        console.print(table if table.row_count else Text("no parameters"))
        console.print()
