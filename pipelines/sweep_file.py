"""Read a sweep's settings from a YAML file: environment variables, `--set`, and what is wrong in one line each."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.pipelines import settings

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
SECTIONS: dict[str, type[settings.Section]] = {
    "models": settings.ModelEntry,
    "methods": settings.MethodEntry,
    "tasks": settings.TaskEntry,
    "workers": settings.WorkerSettings,
    "wandb": settings.TrackingSettings,
}


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> settings.Sweep:
    """Read a sweep's settings.

    Args:
        path: A YAML file. `${NAME}` in a text stands for the environment variable, `${NAME:-text}` for the
            text where it is not set.
        overrides: Settings such as `workers.count=2` or `lengths=[512, 1024]` that replace those of the file.

    Raises:
        UsageError: The file cannot be read, or a setting is unknown or wrong; all wrong ones are named.
        MethodError: A method or one of its parameters is unknown or wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a sweep must be a mapping of settings, found {type(content).__name__}")
    for override in overrides:
        override_setting(content, override)
    try:
        return settings.Sweep.model_validate(with_variables(content))
    except ValidationError as error:
        # A list whose entries are all wrong is also reported as empty.
        wrong = [one for one in error.errors() if not (one["type"] == "too_short" and one["input"])]
        raise UsageError("\n".join([f"{path}:", *map(_explained, wrong)])) from error


def override_setting(content: dict[str, Any], override: str) -> None:
    """Apply `a.b.c=value` to a file's content; a number in the path is an index of a list, the value is YAML.

    Raises:
        UsageError: It is not of this form, or names a place that is not there.
    """
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UsageError(f"--set needs name=value, found {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {name}: not readable as YAML: {text!r}") from error
    *parents, last = name.split(".")
    place: Any = content
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else place[_index(name, place, parent)]
    place[last if isinstance(place, dict) else _index(name, place, last)] = value


def _index(name: str, place: Any, part: str) -> int:
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        return int(part)
    raise UsageError(f"--set {name}: there is no {part!r} to set")


def with_variables(value: Any) -> Any:
    """Replace environment variables in every text of a file's content.

    Raises:
        UsageError: A variable is not set, or not written as `${NAME}` or `${NAME:-default}`.
    """
    if isinstance(value, dict):
        return {key: with_variables(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_variables(part) for part in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]  # without `:-`, an empty one is empty
        if found is None and match[1] not in os.environ:
            raise UsageError(f"{value!r}: the environment variable {match[1]} is not set")
        return found or ""

    if "${" in VARIABLE.sub("", value):
        raise UsageError(f"{value!r}: environment variables are written ${{NAME}} or ${{NAME:-default}}")
    return VARIABLE.sub(variable, value)


def _explained(error: Any) -> str:
    """Say what is wrong with one setting, as pydantic describes it."""
    *parents, name = error["loc"]
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        section = SECTIONS[parents[0]] if parents else settings.Sweep
        allowed = [".".join(map(str, [*parents, known])) for known in section.model_fields]
        return f"  {unknown_name('setting', place, allowed)}"
    if error["type"] == "missing":
        near = get_close_matches(str(name), [str(key) for key in error["input"]], n=1)
        return f"  {place} is missing" + (f"; did you mean {name!r} where there is {near[0]!r}?" if near else "")
    return f"  {place}: {error['msg'].removeprefix('Value error, ')}, found {error['input']!r}"
