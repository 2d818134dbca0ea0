"""How sure a number is, and how likely a difference is by chance."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy.stats import binomtest, hypergeom, norm
from scipy.stats import t as student

from mesa_lm.reporting.aggregations import Numbers, mean

Z_95 = float(norm.ppf(0.975))
SIGNIFICANT = 0.05
EXACT = 13  # documents that differ, up to which all ways to exchange them are tried: 8,192
RESAMPLES = 9_999
BATCH = 1_000  # resamples in memory at a time
SEED = 0
ROUNDING = 1e-9  # by which, of their amount, equal numbers may differ


class Interval(NamedTuple):
    """Hold the bounds of a 95% confidence interval."""

    low: float
    high: float


class Estimate(Protocol):
    """A mean of samples and how sure it is."""

    @property
    def value(self) -> float:
        """The mean."""

    @property
    def stderr(self) -> float | None:
        """Its standard error; None where unknown."""

    @property
    def samples(self) -> int | None:
        """Of how many samples; None where unknown."""

    @property
    def is_share(self) -> bool:
        """Whether it is a share of successes."""


class BoundedEstimate(Estimate, Protocol):
    """A mean of samples with its interval."""

    @property
    def interval(self) -> Interval | None:
        """Its 95% interval; None where unknown."""


class PairedTest(NamedTuple):
    """Hold what two methods' scores of the same samples say.

    Attributes:
        difference: 95% interval of second - first; None for so few samples that no difference would be significant.
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


def student_interval(value: float, stderr: float, samples: int | None) -> Interval | None:
    """Return the interval of a mean with a standard error; None for one sample, which has none.

    Source: Student 1908, The probable error of a mean; for an unknown number of samples the normal distribution.
    """
    if samples is not None and samples < 2:
        return None
    half = stderr * (Z_95 if samples is None else _student_95(samples - 1))
    return Interval(value - half, value + half)


@cache
def _student_95(freedom: int) -> float:
    """Return how many standard errors a 95% interval reaches to each side."""
    return float(student.ppf(0.975, freedom))


def mean_interval(points: Sequence["BoundedEstimate"]) -> Interval | None:
    """Return the interval of the mean of independent values from their own intervals.

    Args:
        points: The values.

    Returns:
        The interval; None where a value has none.

    Source:
        Zou and Donner 2008, Construction of confidence limits about effect measures: a general approach.
    """
    bounds = [point.interval for point in points]
    known = [interval for interval in bounds if interval is not None]
    if len(known) < len(bounds):
        return None
    mean = float(np.mean([point.value for point in points]))
    pairs = list(zip(points, known, strict=True))
    below = math.hypot(*(point.value - interval.low for point, interval in pairs)) / len(points)
    above = math.hypot(*(interval.high - point.value for point, interval in pairs)) / len(points)
    return Interval(mean - below, mean + above)


def paired_test(first: Numbers, second: Numbers, value: Callable[[Numbers], Numbers]) -> PairedTest:
    """Compare what two methods scored on the same samples.

    Args:
        first: (samples, parts), the numbers of each sample; a metric is a function of their sums over samples.
        second: Those of the second method, on the same samples in the same order.
        value: From sums, (..., parts), to the metric, (...).

    Returns:
        Where all are scores of 0 or 1 and the metric is their mean, McNemar's exact test, else that of
        `paired_p_value`, with an interval from the fewest samples with which it can tell any difference.

    Source:
        McNemar 1947 in its exact binomial form, with the interval of Agresti and Min 2005, Simple improved confidence
        intervals for comparing matched proportions; the bootstrap's percentile interval, Efron and Tibshirani 1993,
        chapter 13.
    """
    if value is mean and np.isin([first, second], (0.0, 1.0)).all():
        difference = (second - first)[:, 0]
        return _mcnemar(len(difference), int((difference > 0).sum()), int((difference < 0).sum()))
    p_value = paired_p_value(first[:, None], second[:, None], value)
    if 2 ** (1 - len(first)) > SIGNIFICANT:
        return PairedTest(None, p_value, "sign flips")
    generator, even = np.random.default_rng(SEED), np.full(len(first), 1 / len(first))
    drawn = (generator.multinomial(len(first), even, BATCH) for _ in range(0, RESAMPLES, BATCH))
    differences = np.concatenate([value(times @ second) - value(times @ first) for times in drawn])
    low, high = np.percentile(differences, (2.5, 97.5))
    return PairedTest(Interval(float(low), float(high)), p_value, "sign flips")


def paired_p_value(first: Numbers, second: Numbers, value: Callable[[Numbers], Numbers]) -> float:
    """Return how likely a difference of a metric that large would be if two methods were equal.

    Were they equal, it would be chance which of the two answers to a document is whose: they change places. All
    lengths of a document change places together, for they are no more independent than its text.

    Args:
        first: (documents, lengths, parts), the numbers of each sample, zeros where there is none.
        second: Those of the second method.
        value: From sums over documents, (..., parts), to the metric, (...); of several lengths its mean counts.

    Returns:
        The probability: exact where at most 13 documents differ, as all ways to change places are tried, else from
        9,999 draws. It is at least 2 / 2^n for n documents.

    Source:
        Fisher 1935, The design of experiments, section 21; Phipson and Smyth 2010, Permutation p-values should never be
        zero.
    """
    differs = (first != second).any(axis=(1, 2))
    total, moved = (first + second).sum(axis=0), (second - first)[differs]

    def differences(signs: Numbers) -> Numbers:
        change = np.tensordot(signs, moved, axes=1)
        found: Numbers = np.abs((value((total + change) / 2) - value((total - change) / 2)).mean(axis=-1))
        return found

    observed = float(differences(np.ones((1, len(moved))))[0])
    tried = np.concatenate([differences(signs) for signs in _signs(len(moved))])
    as_large = int((tried >= observed * (1 - ROUNDING)).sum())
    return as_large / len(tried) if len(moved) <= EXACT else (as_large + 1) / (len(tried) + 1)


def _signs(count: int) -> Iterator[Numbers]:
    """Yield all ways to exchange so many documents, (ways, documents), or some drawn ones where these are many."""
    if count <= EXACT:
        yield np.array(list(product((1.0, -1.0), repeat=count))).reshape(2**count, count)
        return
    generator = np.random.default_rng(SEED)
    for start in range(0, RESAMPLES, BATCH):
        yield generator.choice((1.0, -1.0), size=(min(BATCH, RESAMPLES - start), count))


def unpaired_p_value(first: Sequence[Estimate], second: Sequence[Estimate]) -> float | None:
    """Return how likely the difference of two independent means over the same lengths is by chance.

    Args:
        first: One estimate per length.
        second: Those of the other, at the same lengths.

    Returns:
        For shares of successes an exact test of all lengths, else Welch's test. It is never less than what any test
        could say of so few documents, which may be the same ones at every length. None where the number of samples or
        a standard error is unknown.

    Source:
        Fisher 1935, section 21.1, for one length; Mehta, Patel and Gray 1985, Computing an exact confidence interval
        for the common odds ratio in several 2 x 2 contingency tables, for several. Welch 1947, The generalization of
        "Student's" problem when several different population variances are involved.
    """
    counts = [max((one.samples or 0 for one in side), default=0) for side in (first, second)]
    if not all(one.samples for one in (*first, *second)) or not all(counts):
        return None
    least = 2 / math.comb(sum(counts), counts[0])
    if all(one.is_share for one in (*first, *second)):
        found: float | None = _stratified(first, second)
    else:
        found = _welch(first, second)
    return None if found is None else min(1.0, max(least, found))


def _welch(first: Sequence[Estimate], second: Sequence[Estimate]) -> float | None:
    """Return Welch's p-value of a difference of means; None where a standard error is unknown."""
    errors = [(one.stderr, (one.samples or 0) - 1) for one in (*first, *second)]
    if any(stderr is None or not free for stderr, free in errors):
        return None
    difference = abs(sum(one.value for one in first) - sum(one.value for one in second))
    squares = [((stderr or 0.0) ** 2, free) for stderr, free in errors]
    variance = sum(square for square, _ in squares)
    if not variance:
        return float(difference == 0)
    freedom = variance**2 / sum(square**2 / free for square, free in squares)
    return float(2 * student.sf(difference / math.sqrt(variance), freedom))


def _stratified(first: Sequence[Estimate], second: Sequence[Estimate]) -> float:
    """Return the exact p-value of a difference in successes, where each length has its own share of them."""
    probability, start, found = np.ones(1), 0, 0
    for one, other in zip(first, second, strict=True):
        samples = [one.samples or 0, other.samples or 0]
        won = [round(side.value * count) for side, count in zip((one, other), samples, strict=True)]
        successes = hypergeom(sum(samples), sum(won), samples[0])
        low, high = (int(bound) for bound in successes.support())
        probability = np.convolve(probability, successes.pmf(np.arange(low, high + 1)))
        start, found = start + low, found + won[0]
    return float(probability[probability <= probability[found - start] * (1 + ROUNDING)].sum())


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
