"""How a method is called: by its name and the parameters that differ from its defaults."""

from collections.abc import Mapping
from typing import Any

from mesa_lm.errors import MethodError
from mesa_lm.methods.parameters import declared, default_of
from mesa_lm.methods.registry import create, method_class

SOURCE = " @ "  # between a method and where its results come from


def method_label(name: str, given: Mapping[str, Any], used: Mapping[str, Any], train_length: int | None) -> str:
    """Return a method with the parameters that differ from its defaults.

    So a parameter that was given at its default changes nothing, and one whose default is another now than when the
    results were measured is named.

    Args:
        name: The method's.
        given: The arguments that its user set, of the model too.
        used: Every parameter with the value that was used; empty where the results do not say it.
        train_length: Training length of the model in tokens; None where unknown.

    Returns:
        A label such as "mesa (first_chunk=50)". Of a method that is not installed, or whose parameters are not those of
        the installed version, all that were given are named.
    """
    try:
        differing = _differing(name, given, used, train_length)
    except (MethodError, TypeError):
        differing = {key: given[key] for key in used if key in given}
    shown = [f"{key}={_text(value)}" for key, value in sorted(differing.items())]
    return f"{name} ({', '.join(shown)})" if shown else name


def with_source(label: str, source: str) -> str:
    """Return the label of a method that several sources have."""
    return f"{label}{SOURCE}{source}"


def name_of(label: str) -> str:
    """Return the method of a label, without its parameters and without its source."""
    return label.partition(SOURCE)[0].partition(" (")[0]


def source_of(label: str) -> str:
    """Return the source of a label; "" where it names none."""
    return label.partition(SOURCE)[2]


def _differing(
    name: str, given: Mapping[str, Any], used: Mapping[str, Any], train_length: int | None
) -> dict[str, Any]:
    """Return the parameters whose values are not the defaults.

    Raises:
        MethodError: The method is not known, or not with these parameters.
        TypeError: A value is of a kind that no parameter has.
    """
    kind, default_kind = method_class(name, used.get("variant")), method_class(name)
    method = create(kind, dict(used))
    found = {}
    for key, declaration in declared(kind).items():
        if key not in used:
            continue
        value = used[key]
        if key == "variant":
            default: Any = declared(default_kind)[key].shown
        elif declaration.rule is None:
            default = getattr(kind(), key)
        elif key == "train_length" or train_length is None:
            default = value if key not in given else None  # what it would be for the model is not known here
        else:
            default = default_of(declaration, train_length, method)
        if value != default:
            found[key] = value
    return found


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
