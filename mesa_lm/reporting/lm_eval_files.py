"""Find lm-eval's results files, read each once and say what it holds."""

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.lengths import split_length_name
from mesa_lm.reporting.aggregations import DEFAULTS
from mesa_lm.reporting.file_checks import check_content, is_number
from mesa_lm.reporting.statistics import Interval, is_share, share_interval, student_interval

logger = logging.getLogger(__name__)

SHORT_COMMIT = 12  # characters of a commit that are shown
DEMO_NAME = "demo"
DEPTH = r"(.+)_depth_([0-9.]+)"  # a metric of the samples at one depth, percent
# The arguments that name a model in lm-eval's backends; an adapter names it better than its base.
NAME_ARGUMENTS = ("peft", "delta", "pretrained", "model", "path", "engine")


class Measurement(NamedTuple):
    """Hold one metric of one model and method on one task at one input length.

    Attributes:
        model: The model's name or path, with `@revision` unless that is main; "demo" for the model that ships.
        method: The extrapolation method with the parameters its user set; "origin" for an untouched model.
        task: The group of tasks that differ in length only.
        name: The task itself, of that one length.
        length: Input length in tokens.
        source: The file it was read from.
        train_length: Training length of the model in tokens; None where the file does not name it.
        metric: Name of the metric, followed by `,filter` where the filter is not "none".
        value: The metric.
        stderr: Standard error of `value`; None where lm-eval gives none.
        samples: Number of samples; None where unknown.
        higher_is_better: Direction of the metric; None where unknown.
        aggregation: By what lm-eval makes it of its samples, "mean" for most; see `aggregations`.
    """

    model: str
    method: str
    task: str
    name: str
    length: int
    source: Path
    train_length: int | None
    metric: str = ""
    value: float = math.nan
    stderr: float | None = None
    samples: int | None = None
    higher_is_better: bool | None = None
    aggregation: str = "mean"

    @property
    def is_share(self) -> bool:
        """Whether it is the share of samples that succeeded."""
        return self.higher_is_better is not False and is_share(self.value, self.stderr, self.samples)

    @property
    def interval(self) -> Interval | None:
        """Its 95% confidence interval; None where neither samples nor standard error allow one."""
        if self.is_share and self.samples:
            return share_interval(round(self.value * self.samples), self.samples)
        return None if self.stderr is None else student_interval(self.value, self.stderr, self.samples)


@dataclass(frozen=True)
class ResultsFile:
    """Say what a results file of lm-eval, of a benchmark or of a sweep holds.

    Attributes:
        path: The file.
        content: Its JSON; `results`, `configs` and `config` are objects.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def date(self) -> float:
        """When the run started, in seconds since 1970; 0 where the file does not say it."""
        return self.content.get("date") or 0.0

    @property
    def config(self) -> Mapping[str, Any]:
        """How lm-eval was run."""
        config: Mapping[str, Any] = self.content["config"]
        return config

    @property
    def mesa_lm(self) -> Mapping[str, Any]:
        """What mesa-hf said about itself; empty for other models."""
        return self.config.get("mesa_lm") or {}

    @property
    def commit(self) -> str | None:
        """The commit that answered, marked "edited" where files had been changed since; None where unknown."""
        own = self.mesa_lm.get("commit")
        if own is None:
            named: str | None = self.content.get("git_hash")  # lm-eval's, of the folder that it was run in
            return None if self.mesa_lm else named
        return str(own)[:SHORT_COMMIT] + (" edited" if self.mesa_lm.get("dirty") else "")

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The model arguments; callers from Python may have passed them as one string."""
        given = self.config.get("model_args")
        if isinstance(given, str):
            return dict(part.split("=", 1) for part in given.split(",") if "=" in part)
        return given if isinstance(given, dict) else {}

    @property
    def model(self) -> str:
        """Name of the model, the same one whether the demo model was chosen by path or by default."""
        given = [self.arguments.get(key) for key in NAME_ARGUMENTS] + [self.mesa_lm.get("pretrained")]
        name = next((str(value) for value in given if value), None)
        if name is None:
            return DEMO_NAME if self.config.get("model") == "mesa-hf" else str(self.config.get("model"))
        if Path(name).parts[-3:] == MODEL_PATH.parts[-3:]:
            return DEMO_NAME
        if "://" not in name:
            name = os.path.normpath(name)  # ./my-model, my-model/ and my-model are one
        revision = self.arguments.get("revision", "main")
        return name if revision == "main" else f"{name}@{revision}"

    @property
    def method(self) -> str:
        """The method with the parameters that were set; only mesa-hf runs one."""
        default = "mesa" if self.config.get("model") == "mesa-hf" else "origin"
        name = str(self.mesa_lm.get("method") or self.arguments.get("method", default))
        parameters = sorted(self.mesa_lm.get("parameters") or {})
        given = [f"{key}={self.arguments[key]}" for key in parameters if key in self.arguments]
        return f"{name} ({', '.join(given)})" if given else name

    def out_of_memory(self, task: str) -> set[int]:
        """Return the lengths of a task at which the sweep that wrote the file ran out of memory."""
        failed = (self.content.get("sweep") or {}).get("out_of_memory") or ()
        return {length for group, length in map(split_length_name, failed) if group == task and length}

    def measurements(self) -> Iterator[Measurement]:
        """Yield every metric of every task that has a length, and what a sweep's workers measured of it."""
        if self.mesa_lm.get("truncated_samples"):
            cut = self.mesa_lm["truncated_samples"]
            logger.warning("%s: max_length cut %d samples, which are shorter than named", self.path, cut)
        for name, scores in self.content["results"].items():
            if name not in self.content["configs"]:
                continue  # a group: its mean over lengths is no point of a curve over lengths
            length, task = self._length_and_task(name)
            if length is None:
                continue
            of_task = Measurement(
                model=self.model,
                method=self.method,
                task=task,
                name=name,
                length=length,
                source=self.path,
                train_length=self.mesa_lm.get("train_length"),
            )
            directions = self._of_task("higher_is_better", name)
            samples = self._of_task("n-samples", name).get("effective") or scores.get("sample_len")
            for key, value in scores.items():
                metric, comma, filter_name = key.partition(",")
                if not comma or metric.endswith("_stderr"):
                    continue
                if not is_number(value):
                    logger.warning("%s: %s of %s is %s and left out", self.path, metric, name, value)
                    continue
                yield of_task._replace(
                    metric=metric if filter_name == "none" else key,
                    value=float(value),
                    stderr=_number(scores.get(f"{metric}_stderr,{filter_name}")),
                    samples=_sample_count(metric, scores, samples),
                    higher_is_better=directions.get(metric),
                    aggregation=self._aggregation(name, metric),
                )
            costs = (self.content.get("sweep") or {}).get("costs") or {}
            for metric, value in (costs.get(name) or {}).items():
                yield of_task._replace(metric=metric, value=float(value), higher_is_better=False)

    def _aggregation(self, name: str, metric: str) -> str:
        """Return by what a task makes a metric of its samples; a function of its own is named as such."""
        listed = self.content["configs"][name].get("metric_list") or ()
        given = next((entry.get("aggregation") for entry in listed if entry.get("metric") == metric), None)
        if given is None:
            return DEFAULTS.get(metric, "mean")
        defined = re.search(r"def (\w+)", str(given))
        return f"the task's own {defined[1]}" if defined else str(given)

    def _of_task(self, key: str, name: str) -> Mapping[str, Any]:
        return (self.content.get(key) or {}).get(name) or {}

    def _length_and_task(self, name: str) -> tuple[int | None, str]:
        """Return a task's length in tokens, None if it has none, and the group it belongs to."""
        config = self.content["configs"][name]
        groups = self.content.get("group_subtasks") or {}
        stem, labelled = split_length_name(name)
        options = (config.get("dataset_kwargs") or {}, config.get("metadata") or {})
        length = next((option["length"] for option in options if isinstance(option.get("length"), int)), None)
        if length is None and name in groups.get(stem, ()):
            # A trailing number says the length only if the rest names the group: niah_single_1 does not.
            length = labelled or None
        if length is not None and labelled == length:
            return length, stem
        return length, next((group for group, names in groups.items() if name in names), name)


class Found(NamedTuple):
    """What some paths hold.

    Attributes:
        files: The results files, the run started first in front.
        problems: For each damaged file what is wrong with it.
    """

    files: list[ResultsFile]
    problems: list[str]


def read_files(paths: Iterable[Path]) -> Found:
    """Read results files, each once.

    Args:
        paths: Files and folders. In a folder every `*.json` is tried and files of another kind are skipped, as is what
            is hidden, except a folder that lm-eval named so, after a model such as `./my-model`.

    Returns:
        The files, and what is wrong with damaged ones.

    Raises:
        UsageError: If a path is missing, or a file that was named is no results file.
    """
    found: dict[Path, ResultsFile] = {}
    problems: dict[Path, str] = {}
    for path in paths:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such file or folder; give results of `lm_eval --output_path`")
        in_folder = path.is_dir()
        for file in sorted(path.rglob("*.json")) if in_folder else [path]:
            hidden = _hidden_parts(file, path) if in_folder else []
            real = Path(os.path.realpath(file))
            if real in found or hidden not in ([], [file.parent.name]) or file.is_dir():
                continue
            try:
                content = _load(file)
            except UsageError as error:
                if not hidden or re.match(r"\.+__", file.parent.name):
                    problems[real] = str(error)
                continue
            if content is None and not in_folder:
                raise UsageError(f"{file}: not a results file of lm-eval, it lacks 'results', 'configs' or 'config'")
            if content is None or (hidden and content.get("model_name_sanitized") != file.parent.name):
                continue
            found[real] = ResultsFile(file, content)
    files = sorted(found.values(), key=lambda file: (file.date, file.path))
    return Found(files, list(problems.values()))


def _hidden_parts(file: Path, folder: Path) -> list[str]:
    """Return the parts of a file's path below a folder that are hidden."""
    return [part for part in file.relative_to(folder).parts if part.startswith(".")]


def _load(file: Path) -> dict[str, Any] | None:
    """Return the content of a results file, None if it is JSON of another kind.

    Raises:
        UsageError: The file is damaged.
    """
    if not file.is_file():  # opening a pipe would wait for somebody to write
        raise UsageError(f"{file}: not a regular file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise UsageError(f"{file}: not readable as JSON: nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        return None
    if not all(isinstance(content.get(key), dict) for key in ("results", "configs", "config")):
        return None
    try:
        check_content(content)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    return content


def _sample_count(metric: str, scores: Mapping[str, Any], samples: int | None) -> int | None:
    """Return the number of samples that a metric is the mean of.

    Args:
        metric: Its name. Metrics of one depth take turns in the order of depths, as `passkey_grid` writes them.
        scores: All scores of the task.
        samples: Number of all its samples.
    """
    match = re.fullmatch(DEPTH, metric)
    if match is None or samples is None:
        return samples
    others = (re.fullmatch(DEPTH, key.partition(",")[0]) for key in scores)
    depths = sorted({float(other[2]) for other in others if other and other[1] == match[1]})
    return -(-(samples - depths.index(float(match[2]))) // len(depths))


def _number(value: object) -> float | None:
    """Return a finite number as float, None for anything else such as lm-eval's "N/A"."""
    return float(value) if is_number(value) else None  # type: ignore[arg-type]
