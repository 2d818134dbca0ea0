"""Intervals and tests against published numbers, by hand, and by their properties."""

import math
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import line, measurement

from mesa_lm.reporting.statistics import (
    holm,
    is_share,
    mean_interval,
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
        ({"value": 3.0, "stderr": 0.1}, (2.804, 3.196)),
        ({"value": 0.5, "stderr": 0.01}, (0.4804, 0.5196)),
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
    points = line({512: 3.0, 1024: 5.0}, stderr=0.3)
    half = 1.959964 * math.hypot(0.3, 0.3) / 2
    assert mean_interval(points) == pytest.approx((4 - half, 4 + half))
    assert mean_interval(points.head(1)) == pytest.approx((3 - 1.959964 * 0.3, 3 + 1.959964 * 0.3))
    assert mean_interval(pd.concat([points, line({2048: 3.0})])) is None


def series(*values: float) -> "pd.Series[float]":
    return pd.Series(values, index=[f"doc{i}" for i in range(len(values))], dtype=float)


def test_scores_of_0_and_1_by_hand() -> None:
    first = series(*(float(i < 6) for i in range(20)))  # 6 right
    second = series(*(float(i < 4 or i >= 11) for i in range(20)))  # 4 of them, and 9 others

    tested = paired_test(first, second)

    assert tested.test == "McNemar"
    # 9 won, 2 lost: two-sided binomial of at most 2 in 11
    assert tested.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    half = 1.959964 * math.sqrt(9.5 + 2.5 - 7**2 / 22) / 22
    assert tested.difference == pytest.approx((7 / 22 - half, 7 / 22 + half))


@given(st.lists(st.tuples(st.sampled_from((0.0, 1.0)), st.sampled_from((0.0, 1.0))), min_size=1, max_size=40))
def test_the_order_of_the_methods_does_not_matter(pairs: list[tuple[float, float]]) -> None:
    first, second = (series(*scores) for scores in zip(*pairs, strict=True))
    there, back = paired_test(first, second), paired_test(second, first)
    assert there.p_value == pytest.approx(back.p_value) and 0 <= there.p_value <= 1
    assert there.difference == pytest.approx((-back.difference.high, -back.difference.low))
    assert there.difference.low < there.difference.high


@pytest.mark.parametrize(
    ("differences", "p_value"),
    # By hand: of the 2**n ways to choose the signs, those whose sum lies as far from 0 as the one found.
    [
        ([0.5], 1),
        ([0.5, 0.7], 2 / 4),
        ([0.1, 0.2, 0.3, 0.4], 2 / 16),
        ([0.1, 0.2, 0.3, -0.4], 14 / 16),
        ([0.0, 0.0], 1),
    ],
)
def test_few_other_scores_are_tested_exactly(differences: list[float], p_value: float) -> None:
    first = series(*(0.25 for _ in differences))
    tested = paired_test(first, first + series(*differences))
    assert (tested.test, tested.p_value) == ("sign flips", pytest.approx(p_value))
    assert (tested.difference is None) == (len(differences) == 1)


def test_many_other_scores() -> None:
    first = series(*(0.1 * (i % 7) for i in range(60)))
    better = first + series(*(0.3 + 0.1 * (i % 3) for i in range(60)))
    tested = paired_test(first, better)
    assert tested.p_value == pytest.approx(2 / 10_000)  # none of 9,999 draws is as far off; each side counts one more
    # Differences of 0.3, 0.4 and 0.5 in equal parts: standard error 0.0816 / sqrt(60).
    assert tested.difference == pytest.approx((0.4 - 1.96 * 0.01054, 0.4 + 1.96 * 0.01054), abs=2e-3)
    assert paired_test(first, first) == ((0.0, 0.0), 1.0, "sign flips")


def test_pairs_are_found_by_name_and_the_rest_is_left_out() -> None:
    first, second = series(1.5, 2.5, 3.5), series(1.0, 2.0, 3.0, 4.0)
    assert paired_test(first, second[::-1]) == paired_test(first, second.head(3))


def test_independent_means() -> None:
    intervals = [found.interval for found in (measurement(value=3.0, stderr=0.3), measurement(value=3.5, stderr=0.4))]
    assert unpaired_p_value([3.0, 3.5], intervals) == pytest.approx(math.erfc(0.5 / 0.5 / math.sqrt(2)))
    certain = measurement(value=3.0, stderr=0.0).interval
    assert (unpaired_p_value([3.0, 3.0], [certain] * 2), unpaired_p_value([3.0, 4.0], [certain] * 2)) == (1, 0)


def test_holm() -> None:
    # 0.01 * 3, 0.02 * 2, then not below the one before.
    assert holm([0.03, None, 0.01, 0.02]) == [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    assert holm([]) == []
