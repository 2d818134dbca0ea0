"""Methods of other packages, which name their classes under the entry point group `mesa_lm.methods`.

A package that is broken, or takes a name that is taken, is named in one line and costs nothing but its own methods.
"""

from __future__ import annotations

import dataclasses
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Method
from mesa_lm.methods.parameters import declared

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)

GROUP = "mesa_lm.methods"


@cache
def _offered() -> dict[str, tuple[EntryPoint, ...]]:
    """Return by name what installed packages offer; read once per process."""
    from importlib.metadata import entry_points  # takes as long as the rest of the package

    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in sorted(entry_points(group=GROUP), key=_distribution):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def installed_method(name: str) -> type[Method] | None:
    """Return the method of another package, None if none offers that name.

    Args:
        name: The entry point's, which is the method's.

    Raises:
        MethodError: Several packages offer it, or it cannot be loaded, or is no method.
    """
    entries = _offered().get(name, ())
    if not entries:
        return None
    if len(entries) > 1:
        raise MethodError(
            f"method {name!r} is offered by {' and by '.join(map(_distribution, entries))}; uninstall one"
        )
    found = _loaded(entries[0])
    if isinstance(found, str):
        raise MethodError(f"method {name!r} of {_distribution(entries[0])} cannot be used: {found}")
    return found


def installed_methods(taken: frozenset[str]) -> dict[str, type[Method]]:
    """Return the methods of other packages by name; what cannot be used is logged, once, and left out.

    Args:
        taken: Names of mesa-lm's own methods, which nobody replaces.
    """
    methods = {}
    for name, entries in _offered().items():
        if name in taken:
            offering = " and ".join(map(_distribution, entries))
            _log_once(f"method {name!r} of {offering} is left out: mesa-lm has a method of that name itself")
            continue
        try:
            found = installed_method(name)
        except MethodError as error:
            _log_once(str(error))
            continue
        assert found is not None
        methods[name] = found
    return methods


def distribution_of(method: type[Method]) -> str | None:
    """Return name and version of the package that a method was found in, None for mesa-lm's own and unknown ones."""
    for entry in _offered().get(method.name, ()):
        if _loaded(entry) is method:
            return _distribution(entry)
    return None


@cache
def _loaded(entry: EntryPoint) -> type[Method] | str:
    """Return the class that an entry point names, or in words why it cannot be used."""
    try:
        found: Any = entry.load()
        return _objection(entry, found) or found
    except (Exception, SystemExit) as error:  # whatever another package's code does
        text = str(error).strip().split("\n")[0]
        return f"{entry.value} fails with {type(error).__name__}{f': {text}' if text else ''}"


def _objection(entry: EntryPoint, found: Any) -> str | None:
    """Return what keeps an object from being a method, None if it is one."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        return f"{entry.value} is no subclass of mesa_lm.Method"
    if not dataclasses.is_dataclass(found) or "__dataclass_fields__" not in vars(found):
        return f"{entry.value} is no dataclass"
    if getattr(found, "name", None) != entry.name:
        return f"{entry.value} has the name {getattr(found, 'name', None)!r}, its entry point {entry.name!r}"
    plain = [one.name for one in dataclasses.fields(found) if one.name not in declared(found)]
    if plain:
        return f"{entry.value} has fields that are not declared by parameter(): {', '.join(plain)}"
    found()  # every parameter has a default
    return None


def _distribution(entry: EntryPoint) -> str:
    return "an unnamed package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


@cache
def _log_once(message: str) -> None:
    logger.error("%s", message)
