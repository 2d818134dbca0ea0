"""Read lm-eval's results files as typed cells: one metric of one model and method at one input length."""

import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError, unknown_name

logger = logging.getLogger(__name__)

DEMO_NAME = "demo"
DEPTH = re.compile(r"(.+)_depth_([0-9.]+)")  # a metric of the samples at one depth, percent
Z_95 = 1.959964  # 97.5% quantile of the standard normal distribution
# The arguments that name a model in lm-eval's backends; an adapter names it better than its base.
NAME_ARGUMENTS = ("peft", "delta", "pretrained", "model", "path", "engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Hold one metric of one model and method at one input length.

    Args:
        model: The model's name or path, with `@revision` unless that is main; "demo" for the model that ships.
        method: The extrapolation method with the parameters its user set; "origin" for an untouched model.
        task: The group of tasks that differ in length only.
        name: The task itself, of that one length.
        length: Input length in tokens.
        metric: Name of the metric, followed by `,filter` where the filter is not "none".
        value: The metric.
        stderr: Standard error of `value`; None where lm-eval gives none.
        samples: Number of samples; None where unknown.
        higher_is_better: Direction of the metric; None where unknown.
        train_length: Training length of the model in tokens; None where the file does not name it.
        source: The file it was read from.
    """

    model: str
    method: str
    task: str
    name: str
    length: int
    metric: str
    value: float
    stderr: float | None
    samples: int | None
    higher_is_better: bool | None
    train_length: int | None
    source: Path


class Interval(NamedTuple):
    """Hold the bounds of a confidence interval."""

    low: float
    high: float


def read(paths: Iterable[Path]) -> list[Cell]:
    """Read results files, and those in folders and their subfolders, as written by `lm_eval --output_path`.

    Where two files hold the same metric of the same model, method, task and length, the run started last wins, which
    is logged. Tasks without a length are left out.

    Args:
        paths: Files and folders. In a folder every visible `*.json` is tried and files of another kind are skipped.

    Returns:
        The cells, ordered by model, method, task, length and metric.

    Raises:
        UsageError: If a path is missing, a file is not readable as results, or nothing with a length is found.
    """
    paths = list(paths)
    reports = sorted(_reports(paths), key=lambda item: (item[1].get("date") or 0.0, item[0]))
    newest: dict[tuple[str, str, str, int, str], Cell] = {}
    replaced: dict[tuple[Path, Path], set[int]] = defaultdict(set)
    for path, report in reports:
        for cell in _cells(path, report):
            key = (cell.model, cell.method, cell.task, cell.length, cell.metric)
            if key in newest and newest[key].source != path:
                replaced[newest[key].source, path].add(cell.length)
            newest[key] = cell
    for (old, new), lengths in replaced.items():
        logger.warning("%s replaces the older %s at %s", new, old, ", ".join(map(length_label, sorted(lengths))))
    if not newest:
        found = "only tasks that name no length" if reports else "no results file"
        raise UsageError(
            f"no results per length in {', '.join(map(str, paths))}: found {found}; "
            "needed are files of `lm_eval --output_path` for tasks with a length, such as passkey_long"
        )
    return [newest[key] for key in sorted(newest)]


def select(cells: Sequence[Cell], metric: str, task: str | None = None) -> list[Cell]:
    """Return the cells of one metric of one task.

    Args:
        cells: Cells of any tasks and metrics.
        metric: Name of the metric.
        task: Name of the task group; None where only one has the metric.

    Returns:
        The cells, in the same order.

    Raises:
        UsageError: If the task or the metric is not there, or if several tasks have the metric and none is named.
    """
    if task is not None:
        allowed = {cell.task for cell in cells}
        cells = [cell for cell in cells if cell.task == task]
        if not cells:
            raise UsageError(unknown_name("task", task, allowed))
    chosen = [cell for cell in cells if cell.metric == metric]
    if not chosen:
        raise UsageError(unknown_name("metric", metric, {cell.metric for cell in cells}))
    tasks = sorted({cell.task for cell in chosen})
    if len(tasks) > 1:
        raise UsageError(f"several tasks have the metric {metric!r}: choose one with --task ({', '.join(tasks)})")
    return chosen


def is_proportion(cell: Cell) -> bool:
    """Return whether a metric is a share of successes, so that every sample scored 0 or 1.

    Results files hold no samples. But the mean of n values of 0 and 1 is a multiple of 1/n and fixes their standard
    error, sqrt(value (1 - value) / (n - 1)), which other values almost never match.

    Args:
        cell: The metric.

    Returns:
        True if the value, its standard error and the number of samples agree with that.
    """
    n, value = cell.samples, cell.value
    if not n or cell.higher_is_better is False or not 0 <= value <= 1 or abs(value * n - round(value * n)) > 1e-6:
        return False
    return cell.stderr is None or n == 1 or math.isclose(cell.stderr**2, value * (1 - value) / (n - 1), abs_tol=1e-9)


def interval(cell: Cell) -> Interval | None:
    """Return the 95% confidence interval of a metric.

    Args:
        cell: The metric.

    Returns:
        For a proportion the score interval, which stays inside 0..1 and has a width at 0 and 1 too; else the normal
        interval of the standard error; None where neither the number of samples nor the standard error allows one.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if is_proportion(cell) and cell.samples:
        n, value = cell.samples, cell.value
        scale = 1 + Z_95**2 / n
        centre = (value + Z_95**2 / (2 * n)) / scale
        half = Z_95 / scale * math.sqrt(value * (1 - value) / n + Z_95**2 / (4 * n**2))
        # At 0 and 1 a bound is the value itself; rounding must not put it on the other side.
        return Interval(max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)))
    if cell.stderr is None:
        return None
    return Interval(cell.value - Z_95 * cell.stderr, cell.value + Z_95 * cell.stderr)


def length_label(length: int) -> str:
    """Return a length as task names write it: 4096 tokens as "4k", and 3000 tokens as "3000"."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def label_length(label: str) -> int | None:
    """Return the length in tokens that a label such as "4k" or "3000" says, None if it is no such label."""
    digits = label.removesuffix("k")
    return int(digits) * (1024 if label.endswith("k") else 1) if digits.isdecimal() else None


def _reports(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each results file once, with its content."""
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder; give results of `lm_eval --output_path`")
        in_folder = path.is_dir()
        files = sorted(file for file in path.rglob("*.json") if _visible(file, path)) if in_folder else [path]
        for file in files:
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            report = _load(file)
            if report is not None:
                yield file, report
            elif not in_folder:
                raise UsageError(f"{file}: not a results file of lm-eval, it lacks 'results', 'configs' or 'config'")


def _visible(file: Path, folder: Path) -> bool:
    """Return whether no part of a file's path below a folder is hidden."""
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _load(file: Path) -> dict[str, Any] | None:
    """Return the content of a results file, None if it is JSON of another kind."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(report, dict):
        return None
    return report if all(isinstance(report.get(key), dict) for key in ("results", "configs", "config")) else None


def _cells(path: Path, report: Mapping[str, Any]) -> Iterator[Cell]:
    """Yield the cells of one results file."""
    config = report["config"]
    block = config.get("mesa_lm") or {}
    arguments = _arguments(config.get("model_args"))
    groups = report.get("group_subtasks") or {}
    costs = (report.get("sweep") or {}).get("costs") or {}  # what a sweep's workers measured
    if block.get("truncated_samples"):
        logger.warning("%s: max_length cut %d samples, which are shorter than named", path, block["truncated_samples"])
    for name, scores in report["results"].items():
        if name not in report["configs"]:
            continue  # a group: its mean over lengths is no point of a curve over lengths
        length, task = _length_and_task(name, report["configs"][name], groups)
        if length is None:
            continue
        directions = (report.get("higher_is_better") or {}).get(name) or {}
        cell = Cell(
            model=_model_name(config, arguments),
            method=_method_name(config, arguments),
            task=task,
            name=name,
            length=length,
            metric="",
            value=math.nan,
            stderr=None,
            samples=None,
            higher_is_better=None,
            train_length=block.get("train_length"),
            source=path,
        )
        samples = ((report.get("n-samples") or {}).get(name) or {}).get("effective") or scores.get("sample_len")
        for key, value in scores.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            if _number(value) is None:
                logger.warning("%s: %s of %s is %s and left out", path, metric, name, value)
                continue
            yield replace(
                cell,
                metric=metric if filter_name == "none" else key,
                value=float(value),
                stderr=_number(scores.get(f"{metric}_stderr,{filter_name}")),
                samples=_sample_count(metric, scores, samples),
                higher_is_better=directions.get(metric),
            )
        for metric, value in (costs.get(name) or {}).items():
            yield replace(cell, metric=metric, value=float(value), higher_is_better=False)


def _sample_count(metric: str, scores: Mapping[str, Any], samples: int | None) -> int | None:
    """Return the number of samples that a metric is the mean of.

    Args:
        metric: Its name. Metrics of one depth take turns in the order of depths, as `passkey_grid` writes them.
        scores: All scores of the task.
        samples: Number of all its samples.
    """
    match = DEPTH.fullmatch(metric)
    if match is None or samples is None:
        return samples
    others = (DEPTH.fullmatch(key.partition(",")[0]) for key in scores)
    depths = sorted({float(other[2]) for other in others if other and other[1] == match[1]})
    return -(-(samples - depths.index(float(match[2]))) // len(depths))


def _number(value: object) -> float | None:
    """Return a finite number as float, None for anything else such as lm-eval's "N/A"."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _arguments(model_args: object) -> dict[str, Any]:
    """Return lm-eval's model arguments as a dictionary; callers from Python may have passed them as one string."""
    if isinstance(model_args, str):
        return dict(part.split("=", 1) for part in model_args.split(",") if "=" in part)
    return model_args if isinstance(model_args, dict) else {}


def _model_name(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return the name of the model, the same one whether the demo model was chosen by path or by default."""
    given = [arguments.get(key) for key in NAME_ARGUMENTS] + [(config.get("mesa_lm") or {}).get("pretrained")]
    name = next((str(value) for value in given if value), None)
    if name is None:
        return DEMO_NAME if config.get("model") == "mesa-hf" else str(config.get("model"))
    if Path(name).parts[-3:] == MODEL_PATH.parts[-3:]:
        return DEMO_NAME
    revision = arguments.get("revision", "main")
    return name if revision == "main" else f"{name}@{revision}"


def _method_name(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """Return the method with the parameters that were set; only mesa-hf runs one."""
    block = config.get("mesa_lm") or {}
    default = "mesa" if config.get("model") == "mesa-hf" else "origin"
    name = str(block.get("method") or arguments.get("method", default))
    given = [f"{key}={arguments[key]}" for key in sorted(block.get("parameters") or {}) if key in arguments]
    return f"{name} ({', '.join(given)})" if given else name


def _length_and_task(
    name: str, config: Mapping[str, Any], groups: Mapping[str, Sequence[str]]
) -> tuple[int | None, str]:
    """Return a task's length in tokens, None if it has none, and the group it belongs to."""
    stem, _, label = name.rpartition("_")
    labelled = label_length(label)
    options = (config.get("dataset_kwargs") or {}, config.get("metadata") or {})
    length = next((option["length"] for option in options if isinstance(option.get("length"), int)), None)
    if length is None and name in groups.get(stem, ()):
        length = labelled  # a trailing number says the length only if the rest names the group: niah_single_1 does not
    if length is not None and labelled == length:
        return length, stem
    return length, next((group for group, names in groups.items() if name in names), name)
