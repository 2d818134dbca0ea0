"""The errors that mesa_lm raises for wrong input, and how they suggest a right one."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class MesaError(Exception):
    """Base of every error caused by input: a method, parameter, model, task option or file."""


class MethodError(MesaError):
    """Unknown method, unknown parameter, or a parameter out of its range."""


class ModelError(MesaError):
    """A model that is missing, or that a method cannot run on."""


class LostRankError(MesaError):
    """Processes that share a prompt cannot reach one another any more; another attempt may succeed."""


class UsageError(MesaError):
    """A command, a file or a task option that cannot be used."""


def unknown_name(what: str, found: str, allowed: Iterable[str]) -> str:
    """Return the message for a name that is not among the allowed ones.

    Args:
        what: What the name stands for, for example "method".
        found: The name given.
        allowed: Every valid name.

    Returns:
        One line: what is wrong, the nearest valid name if one is near, and all valid names.
    """
    names = sorted(allowed)
    near = get_close_matches(found, names, n=1) or get_close_matches(found.lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {found!r}{hint} (allowed: {', '.join(names)})"


def lost_link(folder: Path) -> UsageError:
    """Return the error for a folder of the package that is a link in a checkout, and is not there.

    Args:
        folder: `tasks` or `pipelines` in `mesa_lm`.
    """
    return UsageError(
        f"{folder} must be a link to the folder {folder.name} of the repository, which this file system or archive "
        "has lost; use WSL, or install a wheel"
    )
