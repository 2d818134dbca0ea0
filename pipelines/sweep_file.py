"""Read a sweep's settings from a YAML file: environment variables, `--set`, and what is wrong in one line each."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.harness.sources import package_commit
from mesa_lm.pipelines import settings

NIGHTLY = re.compile(r"\{(?:date|time)\}")
SHOWN = 200  # characters of what was found
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
SECTIONS: dict[str, type[settings.Section]] = {
    "models": settings.ModelEntry,
    "methods": settings.MethodEntry,
    "tasks": settings.TaskEntry,
    "workers": settings.WorkerSettings,
    "wandb": settings.TrackingSettings,
}


# Deep nesting, and dates that do not exist, are errors of Python's.
UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
# What pydantic calls things, and what the file's reader does.
PLAIN = {
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of settings",
    "model_attributes_type": "must be a mapping of settings",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "path_type": "must be a path",
    "too_short": "must have at least one entry",
    "string_too_short": "must not be empty",
}


class _Loader(yaml.SafeLoader):
    """YAML in which a name stands once, and no part holds itself."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a name that is given again; of two values one would be lost without a word."""
        seen = []
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", key.start_mark)
            seen.append(name)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _read_yaml(text: str) -> Any:
    content = yaml.load(text, _Loader)  # it is a safe loader
    json.dumps(content, default=str, skipkeys=True)  # raises ValueError for what holds itself
    return content


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> settings.Sweep:
    """Read a sweep's settings.

    Args:
        path: A YAML file. `${NAME}` in a text stands for the environment variable, `${NAME:-text}` for the
            text where it is not set. In `out` and the group of W&B, `{date}`, `{time}`, `{commit}` and `{name}` stand
            for when this is called, this package's commit and the sweep's name.
        overrides: Settings such as `workers.count=2` or `lengths=[512, 1024]` that replace those of the file.

    Raises:
        UsageError: The file cannot be read, or a setting is unknown or wrong; all wrong ones are named.
        MethodError: A method or one of its parameters is unknown or wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = _read_yaml(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: not readable as YAML: {reason or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a sweep must be a mapping of settings, found {type(content).__name__}")
    for override in overrides:
        override_setting(content, override)
    content = with_variables(content)
    dated = _fill_places(content)
    try:
        sweep = settings.Sweep.model_validate(content)
        sweep._out_is_dated = dated
        return sweep
    except ValidationError as error:
        # A list whose entries are all wrong is also reported as empty.
        wrong = [one for one in error.errors() if not (one["type"] == "too_short" and one["input"])]
        lines = [_line(text, overrides, one["loc"]) + _explained(one) for one in wrong]
        raise UsageError("\n".join([f"{path}:", *(f"  {line}" for line in dict.fromkeys(lines))])) from error


def _line(text: str, overrides: Sequence[str], location: Sequence[str | int]) -> str:
    """Return the line of a file that a setting, or the nearest part around it that is there, stands in.

    Args:
        text: The file.
        overrides: Settings that did not come from it.
        location: Names and indices that lead to the setting.
    """
    place = [str(part) for part in location]
    if any(place[: len(parts)] == parts for parts in (given.partition("=")[0].split(".") for given in overrides)):
        return ""
    node: Any = yaml.compose(text, yaml.SafeLoader)
    line = node.start_mark.line
    for part in place:
        if isinstance(node, yaml.MappingNode):
            key, node = next((pair for pair in node.value if pair[0].value == part), (None, None))
        elif isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
            key = node = node.value[int(part)]
        else:
            break
        if key is None:
            break
        line = key.start_mark.line
    return f"line {line + 1}: "


def _fill_places(content: dict[str, Any]) -> bool:
    """Fill in what stands in braces in `out` and the group of W&B, and return whether `out` ends in a night.

    Raises:
        UsageError: Something else stands there.
    """
    moment, (commit, dirty) = local_time(), package_commit()
    values = {
        "date": moment.strftime("%Y-%m-%d"),
        "time": moment.strftime("%H%M%S"),
        "commit": (commit[:12] if commit else "unknown") + ("-edited" if dirty else ""),
        "name": str(content.get("name", "")),
    }

    def filled(setting: str, text: str) -> str:
        for name in re.findall(r"\{([^}]*)\}?", text):
            if name not in values:
                allowed = ", ".join(f"{{{known}}}" for known in values)
                raise UsageError(f"{setting}: unknown {{{name}}} (allowed: {allowed}), found {text!r}")
        return text.format_map(values)

    out, wandb = content.get("out"), content.get("wandb")
    dated = isinstance(out, str) and bool(NIGHTLY.search(Path(out).name))
    if isinstance(out, str):
        content["out"] = filled("out", out)
    if isinstance(wandb, dict):
        default = "{name} " + " ".join(NIGHTLY.findall(str(out))) if dated else None
        group = wandb.get("group", default)
        content["wandb"] = {**wandb, "group": filled("wandb.group", group) if isinstance(group, str) else group}
    return dated


def local_time() -> datetime:
    """Return the time of this machine's clock and place."""
    return datetime.now().astimezone()


def override_setting(content: dict[str, Any], override: str) -> None:
    """Apply `a.b.c=value` to a file's content; a number in the path is an index of a list, the value is YAML.

    Raises:
        UsageError: It is not of this form, or names a place that is not there.
    """
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UsageError(f"--set needs name=value, found {override!r}")
    try:
        value = _read_yaml(text)
    except UNREADABLE as error:
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
        return unknown_name("setting", place, allowed)
    if error["type"] == "missing":
        near = get_close_matches(str(name), [str(key) for key in error["input"]], n=1)
        return f"{place} is missing" + (f"; did you mean {name!r} where there is {near[0]!r}?" if near else "")
    if str(name).startswith(("literal[", "constrained-")):  # one of two that a setting may be
        return f"{'.'.join(map(str, parents))}: must be auto or a whole number above 0, found {error['input']!r}"
    told = PLAIN.get(error["type"], error["msg"].removeprefix("Value error, "))
    found = repr(error["input"])
    return f"{place}: {told}, found {found if len(found) <= SHOWN else found[:SHOWN] + '...'}"
