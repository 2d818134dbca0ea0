"""Declaring the parameters of methods: default or rule, bounds and meaning, in one line each."""

import inspect
from collections.abc import Callable
from dataclasses import field, fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from mesa_lm.errors import MethodError

MOST = 10**9  # of any number: beyond all inputs, and positions and frequencies are finite in float32
_IN_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", NoneType: "none"}


class Declaration(NamedTuple):
    """What `parameter` declares of a field.

    Attributes:
        text: What the parameter means.
        rule: Returns its value for a model, from T, or from T and the method with its earlier fields filled in; None
            where the field has a default of its own.
        shown: The default in words: the rule's formula, or the value.
        at_least: Smallest number allowed.
        at_most: Largest number allowed; None: `MOST`.
    """

    text: str
    rule: Callable[..., Any] | None
    shown: str
    at_least: float | None
    at_most: float | None


def parameter(
    default: Any, text: str, *, shown: str = "", at_least: float | None = None, at_most: float | None = None
) -> Any:
    """Declare a parameter of a method; its type is the field's annotation.

    Args:
        default: A value, or a function of T, or of T and the method with its earlier fields filled in, that gives one
            when the method is bound to a model.
        text: What the parameter means.
        shown: The function as a formula of T and earlier parameters, rounded down and at least `at_least`.
        at_least: Smallest number allowed.
        at_most: Largest number allowed.
    """
    rule = default if callable(default) else None
    declaration = Declaration(text, rule, shown or str(default), at_least, at_most)
    return field(default=None if rule else default, metadata={"parameter": declaration})


def declared(method: type[Any] | Any) -> dict[str, Declaration]:
    """Return a method's parameters by name, in the order of their declaration."""
    return {one.name: one.metadata["parameter"] for one in fields(method) if "parameter" in one.metadata}


def default_of(declaration: Declaration, train_length: int, method: Any) -> Any:
    """Return what a parameter's rule says for a model.

    Args:
        declaration: Of a parameter with a rule.
        train_length: T in tokens.
        method: The method, its earlier fields filled in.
    """
    rule = declaration.rule
    assert rule is not None
    count = len(inspect.signature(rule).parameters)
    return rule(*(train_length, method)[:count])


def check_parameters(method: Any) -> None:
    """Check every field of a method against its annotation and its bounds.

    Fields with a rule may be None: the rule then fills them in.

    Raises:
        MethodError: A value is of another type, not finite, out of bounds, or none of the allowed names.
    """
    types = _types(type(method))
    for name, declaration in declared(method).items():
        value = getattr(method, name)
        if value is None and declaration.rule is not None:
            continue
        if not any(_fits(value, kind, declaration) for kind in types[name]):
            default = "a value from the model" if declaration.rule else declaration.shown
            raise MethodError(
                f"{method.name}: {name} must be {allowed(type(method), name)}, found {_found(value)}; "
                f"leave it out to use {default}"
            )


def allowed(method: type[Any], name: str) -> str:
    """Return in words what a parameter may be, such as "an integer of at least 1 or 'auto'"."""
    declaration = declared(method)[name]
    words = []
    for kind in _types(method)[name]:
        if get_origin(kind) is Literal:
            words += [repr(name) for name in get_args(kind)]
            continue
        bounds = [
            f"{side} {bound:g}"
            for side, bound in (("at least", declaration.at_least), ("at most", declaration.at_most))
            if bound is not None and kind in (int, float)
        ]
        words.append(" of ".join([_IN_WORDS[kind], " and ".join(bounds)] if bounds else [_IN_WORDS[kind]]))
    return " or ".join(words)


def _found(value: object) -> str:
    """Return a value in words; one that is too large with the bound that it exceeds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > MOST:
        exact = repr(value) if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        return f"{exact}, more than {MOST}"
    return repr(value)


def _fits(value: object, kind: Any, declaration: Declaration) -> bool:
    """Tell whether a value is of one of a parameter's types and inside its bounds."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind in (bool, str, NoneType):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    low = -MOST if declaration.at_least is None else declaration.at_least
    high = MOST if declaration.at_most is None else declaration.at_most
    return low <= value <= high  # what is no number is in no range


def _types(method: type[Any]) -> dict[str, tuple[Any, ...]]:
    """Return the types that each field allows, from its annotation."""
    hints = get_type_hints(method)
    return {
        one.name: get_args(hints[one.name]) if get_origin(hints[one.name]) in (Union, UnionType) else (hints[one.name],)
        for one in fields(method)
    }


def window_rule(train_length: int) -> int:
    """Return the published window of 512 tokens, a quarter of T where that is less, at least 1."""
    return max(1, min(512, train_length // 4))
