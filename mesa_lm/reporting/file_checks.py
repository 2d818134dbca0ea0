"""Check that a results file holds what it should, so that a damaged one is named and never ranked."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mesa_lm.errors import UsageError
from mesa_lm.lengths import split_length_name

DEPTH_LIMIT = 60  # levels of JSON; lm-eval's own files have fewer than ten
LAST_DATE = 253_402_300_799  # the end of the year 9999, in seconds since 1970
LONGEST = 2**53  # up to which every whole number is one in every program
LONGEST_NAME = 200  # characters of a task's name, which is part of a file's
SHOWN = 60  # characters of what was found
# From a metric's name to the values it can have; names that are used for several scales are not here.
RANGES = {
    r"acc|acc_(norm|bytes|mutual_info|all|depth_[0-9.]+)|exact_match": (0.0, 1.0),
    r"oom": (0.0, 1.0),
    r"mcc": (-1.0, 1.0),
    r"brier_score": (0.0, 2.0),
    r"f1|bleu|rouge[12L]|rougeLsum": (0.0, 100.0),
    r"(|tail_)nll(_[0-9]+_[0-9]+)?|bits_per_byte|(|word_|byte_)perplexity|ter": (0.0, math.inf),
    r"(prefill|decode|sample|floor)_(s|s_min|s_max|ratio|tokens_per_s)": (0.0, math.inf),
    r"(weight|kv|rest|peak)_bytes|(linear|attention)_gflops": (0.0, math.inf),
}
ROUNDING = 1e-6

Rule = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Return whether JSON's value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def check_content(content: Mapping[str, Any]) -> None:
    """Check the types and ranges of all that is read from a results file.

    Args:
        content: Its JSON, in which `results`, `configs` and `config` are objects.

    Raises:
        UsageError: Something is wrong; the message says what was found and what is allowed.
    """
    _check_texts(content)
    _check_run(content)
    for name, scores in content["results"].items():
        _check_name(name)
        _must(isinstance(scores, dict), f"results of {name}", "an object", scores)
        _check_scores(name, scores)
    for name, described in content["configs"].items():
        _must(isinstance(described, dict), f"configs of {name}", "an object", described)
        for part in ("dataset_kwargs", "metadata"):
            options = _optional(described, part, dict, f"{part} of {name}", "an object") or {}
            length = options.get("length")
            if length is not None and not isinstance(length, str):
                _must(_is_count(length, 1), f"length of {name}", f"a whole number from 1 to {LONGEST}", length)
        for metric in _optional(described, "metric_list", list, f"metric_list of {name}", "a list") or ():
            _must(isinstance(metric, dict), f"an entry of metric_list of {name}", "an object", metric)
    for name, members in (_optional(content, "group_subtasks", dict, "group_subtasks", "an object") or {}).items():
        are_names = isinstance(members, list) and all(isinstance(member, str) for member in members)
        _must(are_names, f"group_subtasks of {name}", "a list of names", members)
    for name, counts in _objects(content, "n-samples"):
        for kind, count in counts.items():
            _must(_is_count(count, 0), f"the {kind} number of samples of {name}", "a whole number, at least 0", count)
    for name, directions in _objects(content, "higher_is_better"):
        for metric, value in directions.items():
            known = value is None or isinstance(value, bool)
            _must(known, f"higher_is_better of {metric} of {name}", "true or false", value)
    _check_sweep(_optional(content, "sweep", dict, "sweep", "an object") or {})


def _check_run(content: Mapping[str, Any]) -> None:
    """Check what is said of the run and of the model."""
    date = content.get("date")
    known = date is None or (is_number(date) and 0 <= date <= LAST_DATE)
    _must(known, "date", "a number of seconds since 1970", date)
    _optional(content, "git_hash", str, "git_hash", "a text")
    config = content["config"]
    arguments = config.get("model_args")
    _must(arguments is None or isinstance(arguments, dict | str), "model_args", "an object or a text", arguments)
    described = _optional(config, "mesa_lm", dict, "mesa_lm", "an object") or {}
    for name in ("method", "pretrained", "commit"):
        _optional(described, name, str, f"mesa_lm.{name}", "a text")
    _optional(described, "dirty", bool, "mesa_lm.dirty", "true or false")
    _optional(described, "parameters", dict, "mesa_lm.parameters", "an object")
    for name, least in (("train_length", 1), ("truncated_samples", 0)):
        count = described.get(name)
        _must(count is None or _is_count(count, least), f"mesa_lm.{name}", f"a whole number, at least {least}", count)


def _check_scores(name: str, scores: Mapping[str, Any]) -> None:
    """Check one task's metrics."""
    count = scores.get("sample_len")
    _must(count is None or _is_count(count, 0), f"sample_len of {name}", "a whole number, at least 0", count)
    for key, value in scores.items():
        metric, comma, _ = key.partition(",")
        if not comma:
            continue
        if not is_number(value):
            # lm-eval writes "N/A" for what it does not know; a mean of nothing is NaN.
            unknown = value == "N/A" or isinstance(value, float | list | dict | None)
            _must(unknown, f"{metric} of {name}", "a number", value)
            continue
        low, high = (0.0, math.inf) if metric.endswith("_stderr") else value_range(metric)
        inside = low - ROUNDING <= value <= high + ROUNDING
        _must(inside, f"{metric} of {name}", f"{low:g} to {high:g}" if high < math.inf else f"at least {low:g}", value)


def _check_name(name: str) -> None:
    """Check a task's name, which is part of the names of files."""
    usable = 0 < len(name) <= LONGEST_NAME and "/" not in name
    _must(usable, "the name of a task", f"1 to {LONGEST_NAME} characters without a slash", name)
    length = split_length_name(name)[1]
    _must(length <= LONGEST, "the length in the name of a task", f"at most {LONGEST}", name)


def value_range(metric: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have."""
    for names, bounds in RANGES.items():
        if re.fullmatch(names, metric):
            return bounds
    return -math.inf, math.inf


def _check_sweep(sweep: Mapping[str, Any]) -> None:
    """Check what a sweep adds."""
    failed = _optional(sweep, "out_of_memory", list, "sweep.out_of_memory", "a list of names") or []
    _must(all(isinstance(name, str) for name in failed), "sweep.out_of_memory", "a list of names", failed)
    for name in failed:
        _check_name(name)
    for name, costs in _objects(sweep, "costs"):
        for metric, value in costs.items():
            _must(is_number(value) and value >= 0, f"{metric} of {name}", "a number, at least 0", value)


def _check_texts(content: Mapping[str, Any]) -> None:
    """Check that no part is nested too deeply, and that every text and name can be written."""
    parts: list[tuple[Any, int]] = [(content, 0)]
    while parts:
        part, depth = parts.pop()
        if isinstance(part, str):
            _must(is_writable(part), "a text", "of whole Unicode characters", part)
        elif isinstance(part, dict | list):
            _must(depth < DEPTH_LIMIT, "the nesting", f"at most {DEPTH_LIMIT} levels", "more")
            below = [*part, *part.values()] if isinstance(part, dict) else part
            parts += [(value, depth + 1) for value in below]
    for text in _names(content):
        _must(text is None or (isinstance(text, str) and text.isprintable()), "a name", "printable text", text)


def _names(content: Mapping[str, Any]) -> Iterator[Any]:
    """Yield every name and argument that is shown somewhere."""
    yield content["config"].get("model")
    for part in (content["results"], content["configs"], content.get("group_subtasks")):
        yield from part if isinstance(part, dict) else ()
    for scores in content["results"].values():
        yield from scores if isinstance(scores, dict) else ()
    for described in (content["config"].get("model_args"), content["config"].get("mesa_lm")):
        if isinstance(described, dict):
            yield from described
            yield from (value for value in described.values() if isinstance(value, str))
            yield from described["parameters"] if isinstance(described.get("parameters"), dict) else ()
        elif isinstance(described, str):
            yield described


def is_writable(text: str) -> bool:
    """Return whether a text is of whole Unicode characters; JSON can spell half of a pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _objects(content: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the entries of an optional part that must be objects themselves."""
    for name, value in (_optional(content, key, dict, key, "an object") or {}).items():
        _must(isinstance(value, dict), f"{key} of {name}", "an object", value)
        yield name, value


def _optional(content: Mapping[str, Any], key: str, kind: type, what: str, allowed: str) -> Any:
    value = content.get(key)
    _must(value is None or isinstance(value, kind), what, allowed, value)
    return value


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LONGEST


def _must(holds: bool, what: str, allowed: str, found: Any) -> None:
    if not holds:
        text = repr(found)
        raise UsageError(f"{what} must be {allowed}, found {text if len(text) <= SHOWN else text[:SHOWN] + '...'}")
