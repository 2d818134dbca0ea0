"""Replace a method on one object, to be put back later."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def replace_method(owner: Any, name: str, function: Callable[..., Any], undo: ExitStack) -> None:
    """Set a method on an instance.

    Args:
        owner: The instance.
        name: Of the method.
        function: What to call instead.
        undo: Closing it gives the instance back what it had, or its class's.
    """
    had, previous = name in owner.__dict__, owner.__dict__.get(name)
    setattr(owner, name, function)
    if had:
        undo.callback(setattr, owner, name, previous)
    else:
        undo.callback(delattr, owner, name)
