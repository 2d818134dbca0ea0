"""Compare two methods on the same samples: the difference, how sure it is, and how likely it is by chance."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.reporting.results import Z_95, Cell, Interval, read
from mesa_lm.reporting.samples import has_samples, scores

logger = logging.getLogger(__name__)

RESAMPLES = 10_000
SEED = 0


class Comparison(NamedTuple):
    """Hold one metric of two methods on the samples that both answered.

    Args:
        task: The task group.
        length: Input length in tokens.
        metric: Name of the metric.
        higher_is_better: Direction of the metric; None where unknown.
        samples: Number of samples in common.
        unmatched: Number of samples that only one of the two has.
        first: Mean of the first method over the common samples.
        second: Mean of the second.
        difference: 95% interval of second - first.
        p_value: Probability of a difference at least as large if the methods were equal.
        test: "McNemar" where every sample scores 0 or 1, else "paired bootstrap".
    """

    task: str
    length: int
    metric: str
    higher_is_better: bool | None
    samples: int
    unmatched: int
    first: float
    second: float
    difference: Interval
    p_value: float
    test: str


def side(argument: str) -> list[Cell]:
    """Read one side of a comparison.

    Args:
        argument: A results file or folder of one model and method, or of several methods and `::METHOD` behind it.

    Returns:
        The cells of one model and method.

    Raises:
        UsageError: It holds several, or not the one that is named.
    """
    path, _, method = argument.partition("::")
    cells = read([Path(path)])
    if method:
        known = sorted({cell.method for cell in cells})
        if method not in known:
            raise UsageError(unknown_name("method", method, known))
        cells = [cell for cell in cells if cell.method == method]
    found = sorted({(cell.model, cell.method) for cell in cells})
    if len(found) > 1:
        listed = ", ".join(f"{method} of {model}" for model, method in found)
        raise UsageError(f"{argument}: one model and method expected, found {listed}; choose with {path}::METHOD")
    return cells


def compare(first: Sequence[Cell], second: Sequence[Cell]) -> list[Comparison]:
    """Compare two methods wherever both have the same metric of the same task at the same length.

    Args:
        first: Cells of one model and method.
        second: Cells of another one.

    Returns:
        The comparisons, in the order of the first method's cells.

    Raises:
        UsageError: The two have no metric in common, or no sample, or samples were not logged.
    """
    others = {(cell.name, cell.metric): cell for cell in second}
    both = [(cell, others[cell.name, cell.metric]) for cell in first if (cell.name, cell.metric) in others]
    if not both:
        raise UsageError(
            f"nothing to compare: the first has {_metrics(first)}, the second {_metrics(second)}, none in common"
        )
    logged = [pair for pair in both if all(map(has_samples, pair))]
    if not logged:
        return [_compare(*pair) for pair in both]  # says which file is missing
    for cell, _ in (pair for pair in both if pair not in logged):
        logger.warning("%s of %s is left out: not both were evaluated with --log_samples", cell.metric, cell.name)
    return [_compare(*pair) for pair in logged]


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> tuple[Interval, float, str]:
    """Compare the scores of the same samples under two methods.

    Args:
        first: Score by sample.
        second: Score by sample, of the same samples.

    Returns:
        95% interval of the mean of second - first, p-value and name of the test.

    Source:
        Scores of 0 and 1: McNemar 1947 in its exact binomial form, and the interval of Agresti and Min 2005, Simple
        improved confidence intervals for comparing matched proportions. Others: Efron and Tibshirani 1993, An
        introduction to the bootstrap, chapter 13, for the interval, and chapter 16 for the p-value of a mean shifted
        to 0.
    """
    names = sorted(first)
    before, after = (np.array([scored[name] for name in names]) for scored in (first, second))
    difference = after - before
    if set(before) | set(after) <= {0.0, 1.0}:
        return _mcnemar(len(names), int((difference > 0).sum()), int((difference < 0).sum()))
    draw = np.random.default_rng(SEED).integers
    means = np.array([difference[draw(len(names), size=len(names))].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975])
    # One more, so that a finite number of draws never claims that something is impossible.
    extreme = (np.abs(means - difference.mean()) >= abs(difference.mean())).sum() + 1
    return Interval(float(low), float(high)), float(min(1.0, extreme / (RESAMPLES + 1))), "paired bootstrap"


def _mcnemar(samples: int, won: int, lost: int) -> tuple[Interval, float, str]:
    """Compare 0 or 1 per sample: `won` samples went from 0 to 1 and `lost` from 1 to 0."""
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    # Half a sample in each of the four cells: the interval has a width even where no sample differs.
    n, up, down = samples + 2, won + 0.5, lost + 0.5
    centre = (up - down) / n
    half = Z_95 * math.sqrt(up + down - (up - down) ** 2 / n) / n
    return Interval(max(-1.0, centre - half), min(1.0, centre + half)), p_value, "McNemar"


def _compare(first: Cell, second: Cell) -> Comparison:
    before, after = scores(first), scores(second)
    common = before.keys() & after.keys()
    if not common:
        raise UsageError(
            f"{first.name}: {first.source} and {second.source} have no sample in common; "
            "they were evaluated on different documents (number of samples, seed, tokenizer)"
        )
    unmatched = len(before.keys() ^ after.keys())
    before, after = ({name: scored[name] for name in common} for scored in (before, after))
    interval, p_value, test = paired(before, after)
    return Comparison(
        task=first.task,
        length=first.length,
        metric=first.metric,
        higher_is_better=first.higher_is_better,
        samples=len(common),
        unmatched=unmatched,
        first=float(np.mean(list(before.values()))),
        second=float(np.mean(list(after.values()))),
        difference=interval,
        p_value=p_value,
        test=test,
    )


def _metrics(cells: Sequence[Cell]) -> str:
    return ", ".join(dict.fromkeys(f"{cell.metric} of {cell.name}" for cell in cells)) or "nothing"
