"""Read what single samples scored, from the files that `lm_eval --log_samples` writes beside its results."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mesa_lm.errors import UsageError
from mesa_lm.reporting import statistics
from mesa_lm.reporting.aggregations import AGGREGATIONS, Numbers
from mesa_lm.reporting.file_checks import is_writable
from mesa_lm.reporting.lm_eval_files import Measurement

ROUNDING = 1e-6  # by which, of its amount, a metric may differ from what its samples make
SHOWN = 60  # characters of what was found


class NotComparableError(UsageError):
    """A metric that its samples do not make in a known way."""


class Answer(NamedTuple):
    """Hold what a model answered to one sample.

    Attributes:
        sample: The hashes of its document and of its target, the same in all runs.
        doc_id: Number of the document in its task.
        line: Where it stands in the file, from 1.
        score: What was logged for the metric: a number, unless the metric is made of all samples together.
        expected: The right answer.
        found: The model's answer.
    """

    sample: str
    doc_id: int
    line: int
    score: Any
    expected: str
    found: str


class Scores(NamedTuple):
    """Hold what each sample behind a metric contributes to it.

    Attributes:
        places: By sample its row in what follows.
        parts: The numbers whose sums over samples give the metric, (samples, parts).
        documents: The number of each sample's document, which all lengths of a task count alike, (samples,).
        value: From sums, (..., parts), to the metric, (...).
    """

    places: Mapping[str, int]
    parts: Numbers
    documents: NDArray[np.int64]
    value: Callable[[Numbers], Numbers]

    def common(self, other: "Scores") -> list[str]:
        """Return the samples that another one has too."""
        return [sample for sample in self.places if sample in other.places]

    def of(self, samples: Iterable[str]) -> Numbers:
        """Return the numbers of some samples, (samples, parts)."""
        return np.asfortranarray(self.parts[[self.places[sample] for sample in samples]])

    def documents_of(self, samples: Iterable[str]) -> NDArray[np.int64]:
        """Return the document of each of some samples, (samples,)."""
        return self.documents[[self.places[sample] for sample in samples]]


def answers(measured: Measurement) -> Iterator[Answer]:
    """Yield what the model answered to every sample behind a metric; nothing where that was not logged.

    Raises:
        UsageError: The file of the samples is damaged.
    """
    if not has_samples(measured):
        return
    path = samples_path(measured)
    metric, _, filter_name = measured.metric.partition(",")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path}, line {number}: not readable as JSON: {error}") from error
            if not isinstance(record, dict) or not isinstance(record.get("doc_id", 0), int):
                raise UsageError(f"{path}, line {number}: a sample must be a JSON object with a whole number as doc_id")
            # A metric of one depth is logged for the samples of that depth alone.
            if record.get("filter") == (filter_name or "none") and metric in record:
                response = record.get("filtered_resps")
                while isinstance(response, list) and response:
                    response = response[0]
                answer = Answer(
                    sample=f"{record.get('doc_hash')}-{record.get('target_hash')}",
                    doc_id=record.get("doc_id", 0),
                    line=number,
                    score=record[metric],
                    expected=str(record.get("target")),
                    found=str(response),
                )
                if not is_writable(answer.sample + answer.expected + answer.found):
                    raise UsageError(f"{path}, line {number}: a text must be of whole Unicode characters")
                yield answer


def scores(measured: Measurement) -> Scores:
    """Return what every sample behind a metric contributes to it.

    Raises:
        NotComparableError: How the metric is made of its samples is not known here.
        UsageError: No samples were logged, or their file is damaged, or does not hold what the results file says.
    """
    path = samples_path(measured)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; evaluate with --log_samples to compare samples")
    aggregation = AGGREGATIONS.get(measured.aggregation)
    if aggregation is None:
        raise _not_comparable(measured, f"it is made by {measured.aggregation} of all samples together")
    found: dict[str, Sequence[float]] = {}
    documents: dict[str, int] = {}
    for answer in answers(measured):
        # A task may ask the same document twice.
        key = f"{answer.sample}-{answer.doc_id}" if answer.sample in found else answer.sample
        key = sys.intern(key)  # other methods and lengths have the same samples
        try:
            found[key] = aggregation.parts(answer.score)
        except (TypeError, ValueError, OverflowError):
            logged = f"line {answer.line} of {path} has {str(answer.score)[:SHOWN]}"
            raise _not_comparable(measured, f"{logged}, of which {measured.aggregation} is not made") from None
        documents[key] = answer.doc_id
    if not found or measured.samples not in (None, len(found)):
        raise UsageError(f"{path}: {measured.samples} samples expected for {measured.metric}, found {len(found)}")
    # Each part in one piece: so numpy's sums over samples lose the least.
    parts = np.array(list(found.values()), dtype=float, order="F")
    value = float(aggregation.value(parts.sum(axis=0)))
    if not math.isclose(value, measured.value, rel_tol=ROUNDING, abs_tol=ROUNDING):
        made = f"the {measured.aggregation} of its samples is {value:.6g}"
        raise _not_comparable(measured, f"{made}, and {measured.source} says {measured.value:.6g}")
    places = {key: place for place, key in enumerate(found)}
    return Scores(places, parts, np.array([documents[key] for key in found]), aggregation.value)


def logged_scores(points: Iterable[Measurement]) -> tuple[dict[str, Scores], tuple[str, ...]]:
    """Return what the samples behind some rows contribute.

    Args:
        points: Rows of one metric of one method, one per length.

    Returns:
        The scores by the name of the task, without those that were not logged or cannot be compared; and for each
        damaged file what is wrong with it.
    """
    found: dict[str, Scores] = {}
    problems = []
    for row in points:
        try:
            found |= {row.name: scores(row)} if has_samples(row) else {}
        except NotComparableError:
            continue
        except UsageError as error:
            problems.append(str(error))
    return found, tuple(problems)


def common_p_value(first: Mapping[str, Scores | None], second: Mapping[str, Scores | None]) -> float | None:
    """Return how likely the difference of a metric's mean over lengths is by chance, from common samples.

    Args:
        first: What samples of one method contribute, by the names of the tasks of each length; None where that is not
            known.
        second: The same of another method.

    Returns:
        The p-value of `statistics.paired_p_value`; None where something is not known, or no sample is common.
    """
    pairs = [(first[name], second[name]) for name in first if name in second]
    asked = []  # documents and numbers of the common samples of each length
    for one, other in pairs:
        if one is None or other is None:
            return None
        if samples := one.common(other):
            asked.append((one.documents_of(samples), one.of(samples), other.of(samples)))
            value = one.value
    if not asked:
        return None
    documents = np.unique(np.concatenate([own for own, _, _ in asked]))
    # (lengths, parts, documents), 0 where a document was not asked at a length
    first_parts, second_parts = np.zeros((2, len(asked), asked[0][1].shape[1], len(documents)))
    for length, (own, *both) in enumerate(asked):
        rows = np.searchsorted(documents, own)
        for sums, parts in zip((first_parts[length], second_parts[length]), both, strict=True):
            np.add.at(sums.T, rows, parts)
    return statistics.paired_p_value(first_parts.transpose(2, 0, 1), second_parts.transpose(2, 0, 1), value)


def has_samples(measured: Measurement) -> bool:
    """Return whether the samples behind a metric were logged."""
    return samples_path(measured).is_file()


def samples_path(measured: Measurement) -> Path:
    """Return the file that lm-eval writes for a task beside its results file."""
    stamp = measured.source.stem.removeprefix("results_")
    return measured.source.with_name(f"samples_{measured.name}_{stamp}.jsonl")


def _not_comparable(measured: Measurement, why: str) -> NotComparableError:
    return NotComparableError(f"{measured.metric} of {measured.name} cannot be compared sample by sample: {why}")
