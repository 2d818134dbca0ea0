"""Intervals and tests against published numbers, by hand, and by their properties."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import measurement
from scipy.stats import t as student

from mesa_lm.reporting.aggregations import mean
from mesa_lm.reporting.lm_eval_files import Measurement
from mesa_lm.reporting.statistics import (
    holm,
    is_share,
    mean_interval,
    paired_p_value,
    paired_test,
    share_interval,
    unpaired_p_value,
)


@pytest.mark.parametrize(
    ("successes", "samples", "low", "high"),
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_of_a_share(successes: int, samples: int, low: float, high: float) -> None:
    assert share_interval(successes, samples) == pytest.approx((low, high), abs=5e-5)
    value = successes / samples
    stderr = math.sqrt(value * (1 - value) / (samples - 1))
    found = measurement(value=value, samples=samples, stderr=stderr)
    assert found.is_share and found.interval == share_interval(successes, samples)


def test_interval_of_a_share_holds_the_value() -> None:
    for samples in range(1, 200):
        for successes in (0, samples // 3, samples):
            low, high = share_interval(successes, samples)
            assert 0 <= low <= successes / samples <= high <= 1
            assert high - low > 0.01


@pytest.mark.parametrize(
    ("changes", "bounds"),
    [
        # Student's t of 9 degrees of freedom is 2.2622, of an unknown number the normal distribution's 1.9600.
        ({"value": 3.0, "stderr": 0.1}, (2.77378, 3.22622)),
        ({"value": 0.5, "stderr": 0.01}, (0.477378, 0.522622)),
        ({"value": 3.0, "stderr": 0.1, "samples": None}, (2.80400, 3.19600)),
        ({"value": 3.0, "stderr": 0.1, "samples": 1}, None),
        ({"value": 0.53, "stderr": None}, None),
        ({"value": 1.0, "stderr": 0.0, "higher_is_better": False}, (1.0, 1.0)),
        ({"value": 0.5, "stderr": None, "samples": None}, None),
    ],
)
def test_interval_of_other_metrics(changes: dict[str, Any], bounds: tuple[float, float] | None) -> None:
    found = measurement(**({"samples": 10} | changes))
    assert not found.is_share
    assert found.interval == (None if bounds is None else pytest.approx(bounds, abs=5e-5))


def test_a_mean_of_other_scores_is_rarely_taken_for_a_share() -> None:
    assert is_share(0.5, None, 10) and is_share(1.0, 0.0, 1)
    assert not is_share(0.5, 0.3, 10)
    assert not is_share(0.55, None, 10)
    assert not is_share(-1.0, None, 10)
    assert not is_share(0.5, None, 0)


def test_interval_of_a_mean() -> None:
    points = [measurement(value=3.0, stderr=0.3), measurement(value=5.0, stderr=0.3)]
    t = 2.093024  # of 19 degrees of freedom
    half = t * math.hypot(0.3, 0.3) / 2
    assert mean_interval(points) == pytest.approx((4 - half, 4 + half))
    assert mean_interval(points[:1]) == pytest.approx((3 - t * 0.3, 3 + t * 0.3))
    assert mean_interval([*points, measurement(value=3.0)]) is None


def of(*values: float) -> np.ndarray:
    """What samples contribute to a mean: (samples, 2)."""
    return np.stack([np.array(values), np.ones(len(values))], axis=1)


def test_scores_of_0_and_1_by_hand() -> None:
    first = of(*(float(i < 6) for i in range(20)))  # 6 right
    second = of(*(float(i < 4 or i >= 11) for i in range(20)))  # 4 of them, and 9 others

    tested = paired_test(first, second, mean)

    assert tested.test == "McNemar"
    # 9 won, 2 lost: two-sided binomial of at most 2 in 11
    assert tested.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    half = 1.959964 * math.sqrt(9.5 + 2.5 - 7**2 / 22) / 22
    assert tested.difference == pytest.approx((7 / 22 - half, 7 / 22 + half))


@given(st.lists(st.tuples(st.sampled_from((0.0, 1.0)), st.sampled_from((0.0, 1.0))), min_size=1, max_size=40))
def test_the_order_of_the_methods_does_not_matter(pairs: list[tuple[float, float]]) -> None:
    first, second = (of(*scores) for scores in zip(*pairs, strict=True))
    there, back = paired_test(first, second, mean), paired_test(second, first, mean)
    assert there.p_value == pytest.approx(back.p_value) and 0 <= there.p_value <= 1
    assert there.difference == pytest.approx((-back.difference.high, -back.difference.low))
    assert there.difference.low < there.difference.high


@given(st.lists(st.tuples(st.sampled_from((0.0, 1.0)), st.sampled_from((0.0, 1.0))), min_size=1, max_size=12))
def test_sign_flips_of_0_and_1_are_mcnemars_test(pairs: list[tuple[float, float]]) -> None:
    first, second = (of(*scores) for scores in zip(*pairs, strict=True))
    assert paired_p_value(first[:, None], second[:, None], mean) == pytest.approx(
        paired_test(first, second, mean).p_value
    )


@pytest.mark.parametrize(
    ("differences", "p_value"),
    # By hand: of the 2**n ways to choose the signs, those whose sum lies as far from 0 as the one found.
    [
        ([0.5], 1),
        ([0.5, 0.7], 2 / 4),
        ([0.1, 0.2, 0.3, 0.4], 2 / 16),
        ([0.1, 0.2, 0.3, -0.4], 14 / 16),
        ([0.0, 0.0], 1),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 2 / 64),
    ],
)
def test_few_other_scores_are_tested_exactly(differences: list[float], p_value: float) -> None:
    first = of(*(0.25 for _ in differences))
    second = of(*(0.25 + difference for difference in differences))
    tested = paired_test(first, second, mean)
    assert (tested.test, tested.p_value) == ("sign flips", pytest.approx(p_value))
    # Fewer than six documents cannot have a p-value below 0.05, so no difference can be left out of an interval.
    assert (tested.difference is None) == (len(differences) < 6)


@given(st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=2, max_size=4))
def test_lengths_of_a_document_are_no_further_documents(differences: list[list[float]]) -> None:
    """Four documents at however many lengths: one difference in eight is as large by chance."""
    second = np.stack([np.array(differences), np.ones((len(differences), 3))], axis=-1)
    first = second * [0, 1]
    assert paired_p_value(first, second, mean) >= 2 / 2 ** len(differences)


def test_many_other_scores() -> None:
    first = of(*(0.1 * (i % 7) for i in range(60)))
    better = first + of(*(0.3 + 0.1 * (i % 3) for i in range(60))) * [1, 0]
    tested = paired_test(first, better, mean)
    assert tested.p_value == pytest.approx(1 / 10_000)  # none of 9,999 draws is as far off; the one found counts
    # Differences of 0.3, 0.4 and 0.5 in equal parts: standard error 0.0816 / sqrt(60).
    assert tested.difference == pytest.approx((0.4 - 1.96 * 0.01054, 0.4 + 1.96 * 0.01054), abs=2e-3)
    assert paired_test(first, first, mean) == ((0.0, 0.0), 1.0, "sign flips")


def share(successes: int, samples: int) -> Measurement:
    value = successes / samples
    return measurement(value=value, samples=samples, stderr=math.sqrt(value * (1 - value) / (samples - 1)))


@pytest.mark.parametrize(
    ("first", "second", "p_value"),
    # Fisher's exact test by hand: the tables that are no more probable than the one found.
    [
        ([(4, 4)], [(0, 4)], 2 / 70),
        ([(4, 4)], [(1, 4)], 10 / 70),
        ([(3, 4)], [(1, 4)], 34 / 70),
        ([(5, 5)], [(5, 5)], 1),
        # Two lengths: 4 of 4 and 0 of 4 at both has 1 / 70**2 on either side; four documents cannot say so much.
        ([(4, 4), (4, 4)], [(0, 4), (0, 4)], 2 / 70),
        ([(2, 2), (1, 2)], [(1, 2), (1, 2)], 1),
    ],
)
def test_independent_shares_are_tested_exactly(first: Any, second: Any, p_value: float) -> None:
    sides = [[share(*counts) for counts in side] for side in (first, second)]
    assert unpaired_p_value(*sides) == pytest.approx(p_value)
    assert unpaired_p_value(*sides[::-1]) == pytest.approx(p_value)


def test_independent_means() -> None:
    one, other = (measurement(value=value, stderr=0.3, samples=20) for value in (3.0, 3.9))
    # Welch: t = 0.9 / 0.3 sqrt 2 of 38 degrees of freedom.
    assert unpaired_p_value([one], [other]) == pytest.approx(float(student.sf(0.9 / math.hypot(0.3, 0.3), 38)) * 2)
    few = [[measurement(value=value, stderr=1e-6, samples=4)] for value in (3.0, 9.0)]
    assert unpaired_p_value(*few) == pytest.approx(2 / 70)  # the best of the ways to deal out eight documents
    certain = [[measurement(value=value, stderr=0.0, samples=20)] for value in (3.0, 4.0)]
    assert unpaired_p_value(certain[0], certain[0]) == 1
    assert unpaired_p_value(*certain) == pytest.approx(2 / math.comb(40, 20))
    assert unpaired_p_value([one._replace(samples=None)], [other]) is None
    assert unpaired_p_value([one._replace(stderr=None)], [other]) is None


def test_holm() -> None:
    # 0.01 * 3, 0.02 * 2, then not below the one before.
    assert holm([0.03, None, 0.01, 0.02]) == [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    assert holm([]) == []
