"""Declaring, checking and filling in the parameters of methods."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import field, fields
from typing import TYPE_CHECKING, Any

from mesa_lm.errors import MethodError

if TYPE_CHECKING:
    from mesa_lm.methods.base import Method

logger = logging.getLogger(__name__)


def parameter(default: Any, text: str) -> Any:
    """Declare a parameter of a method: its default and what it means."""
    return field(default=default, metadata={"help": text})


def require_int(method: Method, name: str, minimum: int, optional: bool = False) -> None:
    """Check that a parameter is an integer of at least `minimum` (or None if optional).

    Raises:
        MethodError: It is not.
    """
    value = getattr(method, name)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        default = next(field.default for field in fields(method) if field.name == name)
        raise MethodError(
            f"{method.name}: {name} must be an integer of at least {minimum}, found {value!r}; "
            f"leave it out to use {'a value from the model' if default is None else default}"
        )


def require_number(method: Method, name: str, minimum: float, optional: bool = False) -> None:
    """Check that a parameter is a number of at least `minimum` (or None if optional).

    Raises:
        MethodError: It is not.
    """
    value = getattr(method, name)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or value < minimum:
        raise MethodError(f"{method.name}: {name} must be a number of at least {minimum}, found {value!r}")


def require_choice(method: Method, name: str, allowed: Sequence[str]) -> None:
    """Check that a parameter is one of some names.

    Raises:
        MethodError: It is not.
    """
    value = getattr(method, name)
    if value not in allowed:
        raise MethodError(f"{method.name}: {name} must be {' or '.join(map(repr, allowed))}, found {value!r}")


def train_length_of(config: Any) -> int:
    """Return the training length of a model in tokens.

    The rope parameters' or the config's `original_max_position_embeddings` come first: a model that was stretched
    with YaRN or a similar scaling names there what it was trained with.

    Raises:
        MethodError: The config names no length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope  # some models have one set for each kind of layer
    named = (
        "original_max_position_embeddings",
        "max_position_embeddings",
        "max_seq_len",
        "seq_length",
        "model_max_length",
    )
    original, *longest = (getattr(config, name, None) for name in named)
    # Phi-3's config has an original length by default, which says nothing where the longest is shorter.
    given = [int(value) for value in (rope.get(named[0]) or original, next(filter(None, longest), None)) if value]
    if given:
        return min(given)
    raise MethodError(
        f"the config of model type {getattr(config, 'model_type', '?')!r} names none of {', '.join(named)}; "
        "give train_length="
    )


def require_bool(method: Method, name: str) -> None:
    """Check that a parameter is true or false.

    Raises:
        MethodError: It is not.
    """
    value = getattr(method, name)
    if not isinstance(value, bool):
        raise MethodError(f"{method.name}: {name} must be true or false, found {value!r}")


def bound_int(method: Method, name: str) -> int:
    """Return an integer parameter that `Method.resolve` has filled in."""
    value = getattr(method, name)
    assert isinstance(value, int), f"{name} is filled in by resolve()"
    return value


def default_window(train_length: int) -> int:
    """Return the published window of 512 tokens, a quarter of T where that is less, at least 1."""
    return max(1, min(512, train_length // 4))


def warn_if_beyond(method: Method, what: str, positions: int, train_length: int) -> None:
    """Warn where a setting lets distances reach beyond training; the published code runs such settings, so do we.

    Args:
        method: The method.
        what: The parameters that lead there.
        positions: Positions that they need, in tokens.
        train_length: T in tokens.
    """
    if positions > train_length:
        logger.warning(
            "%s: %s needs %d positions, but the model was trained on %d", method.name, what, positions, train_length
        )
