"""Check the options that a user gives a task by `--metadata`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from mesa_lm.errors import UsageError, unknown_name

# It lies between the usual misspellings and `max_length`, an argument of lm-eval's models that resembles `lengths`.
_SLIP = 0.72


@dataclass(frozen=True, slots=True)
class OptionRule:
    """What an option may be.

    Args:
        fits: Whether a value is allowed.
        allowed: What is, to follow "must be".
    """

    fits: Callable[[Any], bool]
    allowed: str

    def or_none(self) -> "OptionRule":
        """Return the rule that allows None, too, which stands for the option left out."""
        return replace(self, fits=lambda value: value is None or self.fits(value))


# What each option of a task may be, or the names that it may be one of.
OptionRules = Mapping[str, OptionRule | tuple[str, ...]]


def is_count(value: object) -> bool:
    """Return whether a value is a whole number of at least 1; True is none."""
    return type(value) is int and value > 0


def is_shares(value: object) -> bool:
    """Return whether a value is a list of numbers from 0 to 1, not empty."""
    return isinstance(value, list) and bool(value) and all(type(v) in (int, float) and 0 <= v <= 1 for v in value)


COUNT = OptionRule(is_count, "a whole number of at least 1")
WHOLE_NUMBER = OptionRule(lambda value: type(value) is int, "a whole number")
FLAG = OptionRule(lambda value: isinstance(value, bool), "true or false")
TEXT = OptionRule(lambda value: isinstance(value, str) and bool(value), "a string")


def check_task_options(task: str, rules: OptionRules, metadata: Mapping[str, Any]) -> None:
    """Refuse options of a task that are misspelt or wrong, before anything is loaded.

    Args:
        task: Name of the task.
        rules: For each option but `lengths`, which every length group has, and checks elsewhere.
        metadata: The user's metadata. It holds the arguments of the model, and options of other tasks too, so that an
            unknown name is wrong only if it resembles an option.

    Raises:
        UsageError: An option is misspelt, of the wrong type or out of range.
    """
    options = ("lengths", *rules)
    for name in metadata.keys() - set(options):
        if get_close_matches(name, options, n=1, cutoff=_SLIP):
            raise UsageError(unknown_name(f"{task} option", name, options))
    for name, rule in rules.items():
        if name not in metadata:
            continue
        value = metadata[name]
        if isinstance(rule, tuple) and value not in rule:
            raise UsageError(unknown_name(f"{task} {name}", str(value), rule))
        if isinstance(rule, OptionRule) and not rule.fits(value):
            raise wrong_option(task, name, rule.allowed, value)


def wrong_option(task: str, name: str, allowed: str, found: object) -> UsageError:
    """Return the error for an option out of range.

    Args:
        task: Name of the task.
        name: Name of the option.
        allowed: What it may be, to follow "must be".
        found: What it is.
    """
    return UsageError(f"{task}: {name} must be {allowed}; found {found!r}")
