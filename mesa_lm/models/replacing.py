"""Replace a method on one object and put back what was there."""

from collections.abc import Callable
from typing import Any


def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Set a method on an instance.

    Args:
        owner: The instance.
        name: Of the method.
        function: What to call instead.

    Returns:
        A function that gives the instance back what it had, or its class's.
    """
    had = name in owner.__dict__
    previous = owner.__dict__.get(name)
    setattr(owner, name, function)

    def restore() -> None:
        if had:
            setattr(owner, name, previous)
        else:
            delattr(owner, name)

    return restore
