"""Compare two methods on the same samples: the difference, how sure it is, and how likely it is by chance."""

import logging
from pathlib import Path
from typing import NamedTuple

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.reporting.lm_eval_files import Measurement
from mesa_lm.reporting.results import Results, measurements, read
from mesa_lm.reporting.samples import has_samples, scores
from mesa_lm.reporting.statistics import Interval, paired_test

logger = logging.getLogger(__name__)


class Comparison(NamedTuple):
    """Hold one metric of two methods on the samples that both answered.

    Attributes:
        task: The task group.
        length: Input length in tokens.
        metric: Name of the metric.
        higher_is_better: Direction of the metric; None where unknown.
        samples: Number of samples in common.
        unmatched: Number of samples that only one of the two has.
        first: Mean of the first method over the common samples.
        second: Mean of the second.
        difference: 95% interval of second - first; None for a single sample.
        p_value: Probability of a difference at least as large if the methods were equal.
        test: Name of the test; see `paired_test`.
    """

    task: str
    length: int
    metric: str
    higher_is_better: bool | None
    samples: int
    unmatched: int
    first: float
    second: float
    difference: Interval | None
    p_value: float
    test: str


def read_side(argument: str) -> Results:
    """Read one side of a comparison.

    Args:
        argument: A results file or folder of one model and method, or of several methods and `::METHOD` behind it.

    Returns:
        The results of one model and method.

    Raises:
        UsageError: It holds several, or not the one that is named.
    """
    path, _, method = argument.partition("::")
    results = read([Path(path)])
    if method:
        known = set(results.table.method)
        if method not in known:
            raise UsageError(unknown_name("method", method, known))
        results = results.where(method=method)
    found = results.table[["model", "method"]].drop_duplicates()
    if len(found) > 1:
        listed = ", ".join(f"{name} of {model}" for model, name in found.itertuples(index=False, name=None))
        raise UsageError(f"{argument}: one model and method expected, found {listed}; choose with {path}::METHOD")
    return results


def compare_methods(first: Results, second: Results) -> list[Comparison]:
    """Compare two methods wherever both have the same metric of the same task at the same length.

    Args:
        first: Results of one model and method.
        second: Those of another one.

    Returns:
        The comparisons, in the order of the first method's rows.

    Raises:
        UsageError: The two have no metric in common, or no sample, or samples were not logged.
    """
    rows, others = ({(row.name, row.metric): row for row in measurements(side.table)} for side in (first, second))
    both = [(row, others[key]) for key, row in rows.items() if key in others]
    if not both:
        listed = [", ".join(f"{metric} of {name}" for name, metric in side) or "nothing" for side in (rows, others)]
        raise UsageError(f"nothing to compare: the first has {listed[0]}, the second {listed[1]}, none in common")
    logged = [pair for pair in both if all(map(has_samples, pair))]
    if not logged:
        return [_compare(*pair) for pair in both]  # says which file is missing
    for row, _ in (pair for pair in both if pair not in logged):
        logger.warning("%s of %s is left out: not both were evaluated with --log_samples", row.metric, row.name)
    return [_compare(*pair) for pair in logged]


def _compare(first: Measurement, second: Measurement) -> Comparison:
    before, after = scores(first), scores(second)
    common = before.index.intersection(after.index)
    if common.empty:
        raise UsageError(
            f"{first.name}: {first.source} and {second.source} have no sample in common; "
            "they were evaluated on different documents (number of samples, seed, tokenizer)"
        )
    return Comparison(
        task=first.task,
        length=first.length,
        metric=first.metric,
        higher_is_better=first.higher_is_better,
        samples=len(common),
        unmatched=len(before) + len(after) - 2 * len(common),
        first=float(before[common].mean()),
        second=float(after[common].mean()),
        **paired_test(before, after)._asdict(),
    )
