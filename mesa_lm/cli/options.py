"""Checks of options that several commands share."""

from collections import Counter
from collections.abc import Iterable

from mesa_lm.errors import UsageError


def refuse_duplicates(option: str, values: Iterable[object]) -> None:
    """Refuse a value that is given twice, which can only be a slip.

    Raises:
        UsageError: There is one.
    """
    for value, times in Counter(map(str, values)).items():
        if times > 1:
            raise UsageError(f"{option} has {value!r} {times} times, each may be given once")
