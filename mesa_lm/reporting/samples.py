"""Read what single samples scored, from the files that `lm_eval --log_samples` writes beside its results."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mesa_lm.errors import UsageError
from mesa_lm.reporting.lm_eval_files import Measurement
from mesa_lm.reporting.results import measurements


class Answer(NamedTuple):
    """Hold what a model answered to one sample.

    Attributes:
        sample: The hashes of its document and of its target, the same in all runs.
        doc_id: Number of the document in its task.
        line: Where it stands in the file, from 1.
        score: The metric on this sample; a number, unless the metric is computed from all samples together.
        expected: The right answer.
        found: The model's answer.
    """

    sample: str
    doc_id: int
    line: int
    score: Any
    expected: str
    found: str


def answers(measured: Measurement) -> Iterator[Answer]:
    """Yield what the model answered to every sample behind a metric; nothing where that was not logged.

    Raises:
        UsageError: The file of the samples is damaged.
    """
    if not has_samples(measured):
        return
    path = samples_path(measured)
    metric, _, filter_name = measured.metric.partition(",")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: not readable as JSON: {error}") from error
            if not isinstance(record, dict):
                raise UsageError(f"{path}, line {number}: a sample must be a JSON object")
            if record.get("filter") == (filter_name or "none"):
                response = record.get("filtered_resps")
                while isinstance(response, list) and response:
                    response = response[0]
                yield Answer(
                    sample=f"{record.get('doc_hash')}-{record.get('target_hash')}",
                    doc_id=record.get("doc_id", 0),
                    line=number,
                    score=record.get(metric),
                    expected=str(record.get("target")),
                    found=str(response),
                )


def scores(measured: Measurement) -> "pd.Series[float]":
    """Return the score of every sample behind a metric, by sample.

    Raises:
        UsageError: No samples were logged, or their file is damaged, or does not hold what the results file says.
    """
    path = samples_path(measured)
    if not path.exists():
        raise UsageError(f"{path}: no such file; evaluate with --log_samples to compare samples")
    found: dict[str, float] = {}
    for answer in answers(measured):
        if not isinstance(answer.score, int | float):
            raise UsageError(
                f"{path}, line {answer.line}: {measured.metric} of a sample must be a number, found {answer.score!r}; "
                "metrics that are computed from all samples together cannot be compared sample by sample"
            )
        # A task may ask the same document twice.
        found[f"{answer.sample}-{answer.doc_id}" if answer.sample in found else answer.sample] = float(answer.score)
    if measured.samples is not None and len(found) != measured.samples:
        raise UsageError(f"{path}: {measured.samples} samples expected for {measured.metric}, found {len(found)}")
    return pd.Series(found, dtype=float)


def pooled_scores(points: pd.DataFrame) -> "pd.Series[float] | None":
    """Return the scores of the samples of all rows of a table, by task and sample; None where some were not logged."""
    rows = list(measurements(points))
    if not rows or not all(map(has_samples, rows)):
        return None
    return pd.concat({row.name: scores(row) for row in rows})


def has_samples(measured: Measurement) -> bool:
    """Return whether the samples behind a metric were logged."""
    return samples_path(measured).exists()


def samples_path(measured: Measurement) -> Path:
    """Return the file that lm-eval writes for a task beside its results file."""
    stamp = measured.source.stem.removeprefix("results_")
    return measured.source.with_name(f"samples_{measured.name}_{stamp}.jsonl")
