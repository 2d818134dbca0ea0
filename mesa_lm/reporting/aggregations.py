"""How lm-eval makes a metric of what its samples scored, so that samples are compared on what the metric means."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


class Aggregation(NamedTuple):
    """Describe a metric as a function of sums over samples.

    Attributes:
        parts: From what lm-eval logs for a sample to the numbers that are summed; raises TypeError or ValueError for
            anything else.
        value: From the sums, (..., parts), to the metric, (...).
    """

    parts: Callable[[Any], Sequence[float]]
    value: Callable[[Numbers], Numbers]


def _score(logged: Any) -> Sequence[float]:
    if isinstance(logged, list | str) or not isfinite(float(logged)):
        raise ValueError
    return float(logged), 1.0


def _weighted(logged: Any) -> Sequence[float]:
    log_likelihood, weight = map(float, logged)
    if not isfinite(log_likelihood) or not 0 < weight < float("inf"):
        raise ValueError
    return log_likelihood, weight


def _confusion(logged: Any) -> Sequence[float]:
    """Count true positives, false positives, false negatives and true negatives of a yes-or-no question."""
    right, answered = logged
    if right not in (0, 1) or answered not in (0, 1):
        raise ValueError
    return right * answered, (1 - right) * answered, right * (1 - answered), (1 - right) * (1 - answered)


def _squared_error(logged: Any) -> Sequence[float]:
    right, probabilities = logged
    return sum((float(p) - (i == right)) ** 2 for i, p in enumerate(probabilities)), 1.0


def mean(sums: Numbers) -> Numbers:
    """Return the mean from the sum of scores and the sum of their weights, (..., 2)."""
    result: Numbers = sums[..., 0] / sums[..., 1]
    return result


def _perplexity(sums: Numbers) -> Numbers:
    result: Numbers = np.exp(-mean(sums))
    return result


def _f1(sums: Numbers) -> Numbers:
    hits, false_alarms, misses, _ = np.moveaxis(sums, -1, 0)
    whole = 2 * hits + false_alarms + misses
    result: Numbers = np.divide(2 * hits, whole, out=np.zeros_like(whole), where=whole > 0)
    return result


def _matthews(sums: Numbers) -> Numbers:
    hits, false_alarms, misses, rejections = np.moveaxis(sums, -1, 0)
    margins = (hits + false_alarms) * (hits + misses) * (rejections + false_alarms) * (rejections + misses)
    covariance = hits * rejections - false_alarms * misses
    result: Numbers = np.divide(covariance, np.sqrt(margins), out=np.zeros_like(margins), where=margins > 0)
    return result


# By the names that lm-eval's registry and task files use.
AGGREGATIONS: Mapping[str, Aggregation] = {
    "mean": Aggregation(_score, mean),
    "perplexity": Aggregation(_score, _perplexity),
    "weighted_perplexity": Aggregation(_weighted, _perplexity),
    "bits_per_byte": Aggregation(_weighted, lambda sums: -mean(sums) / log(2)),
    "brier_score": Aggregation(_squared_error, mean),
    "f1": Aggregation(_confusion, _f1),
    "matthews_corrcoef": Aggregation(_confusion, _matthews),
}
# What lm-eval takes where a task names a metric alone; for all other metrics it is the mean.
DEFAULTS: Mapping[str, str] = {
    "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
    "brier_score": "brier_score",
    "f1": "f1",
    "mcc": "matthews_corrcoef",
    "bleu": "bleu",
    "chrf": "chrf",
    "chrf++": "chrf++",
    "ter": "ter",
    "bypass": "bypass",
}
