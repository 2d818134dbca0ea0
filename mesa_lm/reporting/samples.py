"""Read what single samples scored, from the files that `lm_eval --log_samples` writes beside its results."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mesa_lm.errors import UsageError
from mesa_lm.reporting.results import Cell


class Answer(NamedTuple):
    """Hold what a model answered to one sample.

    Args:
        length: Input length in tokens.
        score: The metric on this sample.
        expected: The right answer.
        found: The model's answer.
    """

    length: int
    score: float
    expected: str
    found: str


def answers(cell: Cell) -> list[Answer]:
    """Return what the model answered to every sample behind a metric; nothing where that was not logged.

    Raises:
        UsageError: The file of the samples is damaged.
    """
    if not has_samples(cell):
        return []
    metric, _, filter_name = cell.metric.partition(",")
    found = []
    for _, record in _records(samples_path(cell)):
        response = record.get("filtered_resps")
        while isinstance(response, list) and response:
            response = response[0]
        score = record.get(metric)
        if record.get("filter") == (filter_name or "none") and isinstance(score, int | float):
            found.append(Answer(cell.length, float(score), str(record.get("target")), str(response)))
    return found


def scores(cell: Cell) -> dict[str, float]:
    """Return the score of every sample behind a metric.

    Args:
        cell: The metric.

    Returns:
        Score by sample, which is named by the hashes of its document and of its target and thus the same in all runs.

    Raises:
        UsageError: No samples were logged, or their file is damaged, or does not hold what the results file says.
    """
    path = samples_path(cell)
    if not path.exists():
        raise UsageError(f"{path}: no such file; evaluate with --log_samples to compare samples")
    metric, _, filter_name = cell.metric.partition(",")
    found: dict[str, float] = {}
    for line, record in _records(path):
        if record.get("filter") != (filter_name or "none"):
            continue
        value = record.get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(
                f"{path}, line {line}: {metric} of a sample must be a number, found {value!r}; "
                "metrics that are computed from all samples together cannot be compared sample by sample"
            )
        name = f"{record.get('doc_hash')}-{record.get('target_hash')}"
        if name in found:
            name = f"{name}-{record.get('doc_id')}"  # the same document twice in one task
        found[name] = float(value)
    if cell.samples is not None and len(found) != cell.samples:
        raise UsageError(f"{path}: {cell.samples} samples expected for {cell.metric}, found {len(found)}")
    return found


def has_samples(cell: Cell) -> bool:
    """Return whether the samples behind a metric were logged."""
    return samples_path(cell).exists()


def samples_path(cell: Cell) -> Path:
    """Return the file that lm-eval writes for a task beside its results file."""
    stamp = cell.source.stem.removeprefix("results_")
    return cell.source.with_name(f"samples_{cell.name}_{stamp}.jsonl")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and content of each sample."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: not readable as JSON: {error}") from error
            if not isinstance(record, dict):
                raise UsageError(f"{path}, line {number}: a sample must be a JSON object")
            yield number, record
