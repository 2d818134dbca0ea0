"""What a method says of itself: its kind, its purpose, its source, and where that can be read."""

import re
from inspect import getdoc
from typing import Any, NamedTuple, get_args

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Kind
from mesa_lm.methods.registry import method_class

OTHER = "other"  # the kind of methods of other packages that declare none
KINDS: tuple[str, ...] = (*get_args(Kind), OTHER)


class Description(NamedTuple):
    """Hold what a method's class says of the method.

    Attributes:
        kind: One of `KINDS`.
        purpose: What it does, in a sentence.
        source: Where it was published.
        url: The address of the paper or the page that the source names first; None where it names none.
    """

    kind: str
    purpose: str
    source: str
    url: str | None


def describe(method: type[Any]) -> Description:
    """Return what a method's class says, from its declarations and its docstring.

    Raises:
        AttributeError: It is one of mesa-lm's own and declares no kind.
    """
    purpose, *rest = (getdoc(method) or "").split("\n")
    _, _, source = "\n".join(rest).partition("Source:")
    source = " ".join(source.split("\n\n")[0].split())
    is_own = method.__module__.startswith("mesa_lm.")
    kind = method.kind if is_own else getattr(method, "kind", OTHER)
    return Description(kind if kind in KINDS else OTHER, purpose, source, _url(source))


def kind_of(name: str) -> str:
    """Return the kind of a method by its name, `OTHER` where it is not installed here."""
    try:
        return describe(method_class(name)).kind
    except MethodError:
        return OTHER


def _url(source: str) -> str | None:
    """Return the first address that a source names: a link, a paper of arXiv, or a repository of GitHub."""
    found = re.search(r"https://[^\s;,]+|arXiv (\d{4}\.\d{4,5})|github\.com/[\w.-]+/[\w.-]*\w", source)
    if found is None:
        return None
    if found[1]:
        return f"https://arxiv.org/abs/{found[1]}"
    return found[0].rstrip(".)") if found[0].startswith("https://") else f"https://{found[0]}"
