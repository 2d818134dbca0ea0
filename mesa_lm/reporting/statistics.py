"""How sure a number is, and how likely a difference is by chance."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap, norm, permutation_test

Z_95 = float(norm.ppf(0.975))
RESAMPLES = 9_999
BATCH = 1_000  # resamples in memory at a time
SEED = 0


class Interval(NamedTuple):
    """Hold the bounds of a 95% confidence interval."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """Hold what two methods' scores of the same samples say.

    Attributes:
        difference: 95% interval of the mean of second - first; None for a single sample, which says nothing of it.
        p_value: Probability of a difference at least as large if the methods were equal.
        test: Its name, "McNemar" or "sign flips".
    """

    difference: Interval | None
    p_value: float
    test: str


def is_share(value: float, stderr: float | None, samples: int | None) -> bool:
    """Return whether a mean is a share of successes, so that every sample scored 0 or 1.

    Results files hold no samples. But the mean of n values of 0 and 1 is a multiple of 1/n and fixes their standard
    error, sqrt(value (1 - value) / (n - 1)), which other values almost never match.

    Args:
        value: The mean.
        stderr: Its standard error; None where unknown.
        samples: Number of samples; None where unknown.
    """
    if not samples or not 0 <= value <= 1 or abs(value * samples - round(value * samples)) > 1e-6:
        return False
    return stderr is None or samples == 1 or math.isclose(stderr**2, value * (1 - value) / (samples - 1), abs_tol=1e-9)


@cache
def share_interval(successes: int, samples: int) -> Interval:
    """Return the interval of a share, which stays inside 0..1 and has a width at 0 and 1 too.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    bounds = binomtest(successes, samples).proportion_ci(method="wilson")
    return Interval(float(bounds.low), float(bounds.high))


def normal_interval(value: float, stderr: float) -> Interval:
    """Return the interval of a mean with a standard error."""
    return Interval(value - Z_95 * stderr, value + Z_95 * stderr)


def mean_interval(points: pd.DataFrame) -> Interval | None:
    """Return the interval of the mean of independent values from their own intervals.

    Args:
        points: Columns `value`, `low` and `high`.

    Returns:
        The interval; None where a value has none.

    Source:
        Zou and Donner 2008, Construction of confidence limits about effect measures: a general approach.
    """
    if points[["low", "high"]].isna().to_numpy().any():
        return None
    mean = float(points.value.mean())
    below, above = (math.hypot(*side) / len(points) for side in (points.value - points.low, points.high - points.value))
    return Interval(mean - below, mean + above)


def paired_test(first: "pd.Series[float]", second: "pd.Series[float]") -> PairedTest:
    """Compare the scores of the same samples under two methods.

    Args:
        first: Score by sample.
        second: Score by sample; the samples that only one of the two has are left out.

    Returns:
        Where all scores are 0 or 1, McNemar's exact test, else a sign-flip test: were the methods equal, each
        difference would have either sign alike. It is exact for up to 13 samples.

    Source:
        McNemar 1947 in its exact binomial form, with the interval of Agresti and Min 2005, Simple improved confidence
        intervals for comparing matched proportions. Fisher 1935, The design of experiments, section 21, for the sign
        flips, with the bootstrap's percentile interval, Efron and Tibshirani 1993, chapter 13.
    """
    pairs = pd.concat([first, second], axis=1, join="inner", keys=["first", "second"]).sort_index()
    difference = (pairs["second"] - pairs["first"]).to_numpy()
    if pairs.isin([0.0, 1.0]).to_numpy().all():
        return _mcnemar(len(difference), int((difference > 0).sum()), int((difference < 0).sum()))
    if len(difference) == 1:
        return PairedTest(None, 1.0, "sign flips")
    options = {"n_resamples": RESAMPLES, "batch": BATCH, "rng": SEED}
    flips = permutation_test((difference,), np.mean, permutation_type="samples", **options)
    bounds = bootstrap((difference,), np.mean, method="percentile", **options).confidence_interval
    return PairedTest(Interval(float(bounds.low), float(bounds.high)), float(flips.pvalue), "sign flips")


def paired_p_value(first: "pd.Series[float] | None", second: "pd.Series[float] | None") -> float | None:
    """Return the p-value of `paired_test`; None where scores are missing or of other samples."""
    if first is None or second is None or first.index.intersection(second.index).empty:
        return None
    return paired_test(first, second).p_value


def unpaired_p_value(values: Sequence[float], intervals: Sequence[Interval]) -> float:
    """Return how likely the difference of two independent means is by chance, from their intervals."""
    error = math.hypot(*((interval.high - interval.low) / 2 / Z_95 for interval in intervals))
    difference = abs(values[0] - values[1])
    return float(2 * norm.sf(difference / error)) if error else float(difference == 0)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number, so that 0.05 holds for the chance of any false alarm among them.

    Args:
        p_values: Of one family of tests; None where there was none.

    Returns:
        Those after correction, in the same order.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    ordered = pd.Series(np.array(p_values, dtype=float)).dropna().sort_values()
    corrected = (ordered * np.arange(len(ordered), 0, -1)).clip(upper=1).cummax().to_dict()
    return [corrected.get(place) for place in range(len(p_values))]


def _mcnemar(samples: int, won: int, lost: int) -> PairedTest:
    """Compare 0 or 1 per sample: `won` samples went from 0 to 1 and `lost` from 1 to 0."""
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    # Half a sample in each of the four cells: the interval has a width even where no sample differs.
    n, up, down = samples + 2, won + 0.5, lost + 0.5
    centre = (up - down) / n
    half = Z_95 * math.sqrt(up + down - (up - down) ** 2 / n) / n
    return PairedTest(Interval(max(-1.0, centre - half), min(1.0, centre + half)), p_value, "McNemar")
