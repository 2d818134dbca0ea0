"""Compare two methods on the same samples: the difference, how sure it is, and how likely it is by chance."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.reporting.costs import OOM_METRIC, is_cost
from mesa_lm.reporting.lm_eval_files import Measurement
from mesa_lm.reporting.ranking import unable_text
from mesa_lm.reporting.results import Results, measurements, read
from mesa_lm.reporting.samples import NotComparableError, has_samples, samples_path, scores
from mesa_lm.reporting.statistics import Interval, paired_test

logger = logging.getLogger(__name__)


class Comparison(NamedTuple):
    """Hold one metric of two methods on the samples that both answered.

    Attributes:
        model: The model; of two models the first.
        task: The task group.
        length: Input length in tokens.
        train_length: Training length of the model in tokens; None where unknown.
        metric: Name of the metric.
        higher_is_better: Direction of the metric; None where unknown.
        samples: Number of samples in common.
        unmatched: Number of samples that only one of the two has.
        first: The metric of the first method over the common samples.
        second: That of the second.
        difference: 95% interval of second - first; None for so few samples that no difference would be significant.
        p_value: Probability of a difference at least as large if the methods were equal.
        test: Name of the test; see `paired_test`.
    """

    model: str
    task: str
    length: int
    train_length: int | None
    metric: str
    higher_is_better: bool | None
    samples: int
    unmatched: int
    first: float
    second: float
    difference: Interval | None
    p_value: float
    test: str


def read_side(argument: str, metric: str | None = None, task: str | None = None) -> Results:
    """Read one side of a comparison.

    Args:
        argument: A results file or folder of one method, or of several methods and `::METHOD` behind it.
        metric: The only metric to compare; None: all.
        task: The only task group to compare; None: all.

    Returns:
        The results of one method, of one or several models.

    Raises:
        UsageError: It holds several methods, or not the one, the metric or the task that is named.
    """
    path, _, method = argument.partition("::")
    results = read([Path(path)])
    for column, wanted in {"method": method or None, "task": task, "metric": metric}.items():
        known = set(results.table[column])
        if wanted is not None and wanted not in known:
            raise UsageError(f"{path}: {unknown_name(column, wanted, known)}")
        results = results.where(**{column: wanted})
    methods = sorted(set(results.table.method))
    if len(methods) > 1:
        raise UsageError(f"{argument}: one method expected, found {', '.join(methods)}; choose with {path}::METHOD")
    return results


def compare_methods(first: Results, second: Results) -> list[Comparison]:
    """Compare two methods wherever both have the same metric of the same task at the same length.

    Args:
        first: Results of one method.
        second: Those of another one: of the same models, or of one model where the first are of one model too.

    Returns:
        The comparisons, in the order of the first method's rows. What cannot be compared sample by sample is left out
        with a warning.

    Raises:
        UsageError: The two have nothing in common that can be compared, or a file of samples is damaged.
    """
    both = list(_pairs(first, second))
    logged = [pair for pair in both if all(map(has_samples, pair))]
    if not logged:
        missing = next(samples_path(row) for row in both[0] if not has_samples(row))
        raise UsageError(f"{missing}: no such file; evaluate with --log_samples to compare samples")
    for row, _ in (pair for pair in both if pair not in logged):
        logger.warning("%s of %s is left out: not both were evaluated with --log_samples", row.metric, row.name)
    found, refused = [], []
    for pair in logged:
        try:
            found.append(_compare(*pair))
        except NotComparableError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    for refusal in refused:
        logger.warning("%s", refusal)
    return found


def unable_pairs(rows: Iterable[Comparison]) -> Iterator[str]:
    """Yield, for each task that neither method can do within the training length, that this is so."""
    within = (row for row in rows if row.train_length and row.length <= row.train_length and row.higher_is_better)
    for (model, task, metric), group in groupby(within, key=lambda row: (row.model, row.task, row.metric)):
        members = list(group)
        if not any(row.first or row.second for row in members):
            yield unable_text(model, task, metric, members[0].train_length or 0)


def _pairs(first: Results, second: Results) -> Iterator[tuple[Measurement, Measurement]]:
    """Yield the rows that both have, of the same model unless each side has but one.

    Raises:
        UsageError: There are none.
    """
    models = [sorted(set(side.table.model)) for side in (first, second)]
    one_each = [len(names) for names in models] == [1, 1]
    if not one_each and not set(models[0]) & set(models[1]):
        listed = [", ".join(names) for names in models]
        raise UsageError(f"nothing to compare: no model in common, the first has {listed[0]}, the second {listed[1]}")
    # Costs are not measured sample by sample.
    sides = [
        {("" if one_each else row.model, row.name, row.metric): row for row in measurements(side.table)}
        for side in (first, second)
    ]
    scored = [{key: row for key, row in side.items() if not _is_cost(row.metric)} for side in sides]
    common = [key for key in scored[0] if key in scored[1]]
    if not common:
        listed = [_listed(side) for side in scored]
        costs = "; costs are not measured sample by sample" if sides != scored else ""
        have = f"the first has {listed[0]}, the second {listed[1]}"
        raise UsageError(f"nothing to compare: {have}, none in common{costs}")
    for key in common:
        yield scored[0][key], scored[1][key]


def _is_cost(metric: str) -> bool:
    return metric == OOM_METRIC or is_cost(metric)


def _listed(rows: Iterable[Sequence[str]]) -> str:
    return ", ".join(f"{metric} of {name}" for _, name, metric in rows) or "nothing"


def _compare(first: Measurement, second: Measurement) -> Comparison:
    if first.aggregation != second.aggregation:
        made = f"made by {first.aggregation} in one and by {second.aggregation} in the other"
        raise NotComparableError(f"{first.metric} of {first.name} cannot be compared: it is {made}")
    before, after = scores(first), scores(second)
    common = before.common(after)
    if not common:
        raise UsageError(
            f"{first.name}: {first.source} and {second.source} have no sample in common; "
            "they were evaluated on different documents (number of samples, seed, tokenizer)"
        )
    sides = before.of(common), after.of(common)
    values = [float(before.value(side.sum(axis=0))) for side in sides]
    return Comparison(
        model=first.model,
        task=first.task,
        length=first.length,
        train_length=first.train_length,
        metric=first.metric,
        higher_is_better=first.higher_is_better,
        samples=len(common),
        unmatched=len(before.parts) + len(after.parts) - 2 * len(common),
        first=values[0],
        second=values[1],
        **paired_test(*sides, before.value)._asdict(),
    )
