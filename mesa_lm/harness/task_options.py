"""Checks of the options of tasks."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from mesa_lm.errors import UsageError, unknown_name

# It lies between the usual misspellings and `max_length`, an argument of lm-eval's models that resembles `lengths`.
_SLIP = 0.72


def check_option_names(task: str, metadata: Mapping[str, Any], options: Collection[str]) -> None:
    """Refuse a misspelt option.

    Args:
        task: Name of the task.
        metadata: The user's metadata. It holds the arguments of the model, and options of other tasks too, so that an
            unknown name is wrong only if it resembles an option.
        options: Names of the task's options.

    Raises:
        UsageError: A name resembles an option and is none.
    """
    for name in metadata.keys() - set(options):
        if get_close_matches(name, options, n=1, cutoff=_SLIP):
            raise UsageError(unknown_name(f"{task} option", name, options))


def check_count(task: str, name: str, metadata: Mapping[str, Any]) -> None:
    """Refuse an option that is given and is no positive whole number.

    Args:
        task: Name of the task.
        name: Name of the option.
        metadata: The user's metadata.

    Raises:
        UsageError: The option is of another type or below 1.
    """
    if name in metadata and not is_count(metadata[name]):
        raise wrong_option(task, name, "a whole number of at least 1", metadata)


def is_count(value: object) -> bool:
    """Return whether a value is a whole number of at least 1; True is none."""
    return type(value) is int and value > 0


def wrong_option(task: str, name: str, allowed: str, metadata: Mapping[str, Any]) -> UsageError:
    """Return the error for an option out of range.

    Args:
        task: Name of the task.
        name: Name of the option.
        allowed: What it may be, to follow "must be".
        metadata: The user's metadata.

    Returns:
        The error, to be raised.
    """
    return UsageError(f"{task}: {name} must be {allowed}; found {metadata[name]!r}")
