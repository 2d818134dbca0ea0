"""Replace a method on one object, to be put back later."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NoReturn

from mesa_lm.errors import ModelError


def replace_method(owner: Any, name: str, function: Callable[..., Any], undo: ExitStack) -> None:
    """Set a method on an instance, which meanwhile refuses to be copied: the copy could not be given its own back.

    Args:
        owner: The instance.
        name: Of the method.
        function: What to call instead.
        undo: Closing it gives the instance back what it had, or its class's; what others have put in the function's
            place is left.
    """
    for attribute, value in ((name, function), ("__getstate__", _refuse_copy)):
        before = {attribute: owner.__dict__[attribute]} if attribute in owner.__dict__ else {}
        undo.callback(_put_back, owner, attribute, value, before)
        setattr(owner, attribute, value)


def _put_back(owner: Any, attribute: str, value: object, before: dict[str, Any]) -> None:
    """Give an instance an attribute back as it was before it got a value, unless it has yet another one."""
    if owner.__dict__.get(attribute) is not value:
        return
    if attribute in before:
        setattr(owner, attribute, before[attribute])
    else:
        delattr(owner, attribute)


def _refuse_copy() -> NoReturn:
    """Stand in for what copy and pickle ask an object for.

    Raises:
        ModelError: Always.
    """
    raise ModelError(
        "a model with a method attached cannot be copied or pickled; remove the method first (handle.remove(), or "
        "leave the `with` block), and attach one to each copy; save_pretrained() and state_dict() work at any time"
    )
