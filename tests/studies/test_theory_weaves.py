"""The woven transformers of theorem 3.3 and corollary 4.1: how far they stand, and where they fail."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from theory_runs import first_failure, near_sum, outputs, positions_read, start_weights, tokens

from mesa_lm.studies.theory import length_limits
from mesa_lm.studies.theory.constructions import (
    MAX_POSITION,
    identity,
    positional,
    rerope,
    stair,
)
from mesa_lm.studies.theory.length_limits import failure_length, guaranteed_length

THRESHOLDS = st.floats(-100, 100)
# How far the ramps' chords rise above the logarithm: this far between large positions, a little more between 2 and 3.
EXCESS = 0.1234


# Theorem 3.3.


@given(data=st.data(), max_length=st.integers(3, 120), threshold=THRESHOLDS)
@settings(max_examples=60)
def test_rerope_stays_above_the_threshold_past_m(data: st.DataObject, max_length: int, threshold: float) -> None:
    near = data.draw(st.integers(1, max_length - 1))
    length = 400

    output = outputs(positional(max_length, threshold), length, rerope(near))

    guaranteed = guaranteed_length(max_length, near)
    assert guaranteed > max_length + 1
    t = tokens(length)
    assert (output[(t > max_length) & (t < guaranteed)] > threshold).all()
    assert (output[t < max_length] > threshold).all()


@pytest.mark.parametrize("near", [1, 2, 5, 16, 60])
def test_the_start_token_outweighs_uniform_attention(near: int) -> None:
    t = tokens(600)

    weight = start_weights(64, len(t), rerope(near))

    torch.testing.assert_close(weight[: near + 1], 1 / t[: near + 1], rtol=1e-11, atol=0)
    assert (weight[near + 1 :] > 1.0001 / t[near + 1 :]).all()


@pytest.mark.parametrize("near", [1, 3, 8])
def test_layer_1_drifts_from_n_plus_1_with_the_logarithm(near: int) -> None:
    t = tokens(2000)
    beyond = (t - near - 1).clamp(min=0)
    inverse = t.clamp(max=near + 1) + torch.log1p((math.e - 1) * beyond * math.exp(-near - 1))

    read = positions_read(len(t), rerope(near))

    assert (read >= inverse - 1e-9).all()
    assert (read <= inverse + EXCESS + 0.03).all()


@pytest.mark.parametrize(
    ("max_length", "near"), [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3), (5, 2), (5, 3), (5, 4), (6, 3)]
)
@pytest.mark.parametrize("knows", ["float64", "m", "saturated"])
def test_the_failure_length_is_the_stacks(max_length: int, near: int, knows: str) -> None:
    positions = {"float64": MAX_POSITION, "m": max_length, "saturated": near + 1}[knows]
    output = outputs(positional(max_length, 0.5, positions), 800, rerope(near))

    assert failure_length(max_length, near, positions) == first_failure(output, max_length, 0.5)


def test_the_failure_length_is_the_stacks_over_thousands_of_tokens() -> None:
    output = outputs(positional(8, 0.5), 2700, rerope(3))

    assert failure_length(8, 3) == first_failure(output, 8, 0.5) == 2639


@pytest.mark.parametrize(("max_length", "near"), [(4, 3), (5, 3), (5, 4), (6, 4), (24, 3), (33, 2)])
def test_saturated_at_n_plus_1_the_sum_grows_with_t_minus_2n(max_length: int, near: int) -> None:
    t = tokens(600)

    weight = start_weights(max_length, len(t), rerope(near), near + 1)

    expected = 2 * near_sum(near) + (t - 2 * near) * math.exp(-near)
    torch.testing.assert_close(1 / weight[2 * near :], expected[2 * near :], rtol=1e-11, atol=0)
    law = (max_length - 2 * near_sum(near)) * math.exp(near) + 2 * near
    assert guaranteed_length(max_length, near) == pytest.approx(law)
    assert failure_length(max_length, near, near + 1) == math.ceil(law)


@pytest.mark.parametrize(("max_length", "near"), [(100, 3), (300, 6), (700, 10), (700, 40)])
def test_saturated_at_n_plus_1_it_fails_at_about_m_times_e_to_the_n(max_length: int, near: int) -> None:
    found = failure_length(max_length, near, near + 1)

    assert found == pytest.approx(max_length * math.exp(near), rel=0.05)


@pytest.mark.parametrize("max_length", [4, 5, 7, 12])
def test_weights_that_know_no_more_than_pe_needs_saturate_for_the_largest_n(max_length: int) -> None:
    output = outputs(positional(max_length, 0.5, max_length), 200, identity)

    assert first_failure(output, max_length, 0.5) == max_length + 1
    assert failure_length(max_length, max_length - 1, max_length) == math.ceil(
        guaranteed_length(max_length, max_length - 1)
    )


@pytest.mark.parametrize(("max_length", "near"), [(4, 3), (8, 7), (16, 8), (24, 4), (64, 16)])
def test_as_built_it_fails_exponentially_late_in_m_too(max_length: int, near: int) -> None:
    def with_sum(partition: float) -> float:
        return math.exp(near + 1) / (math.e - 1) * math.expm1((partition - near_sum(near)) * (math.e - 1) / math.e)

    found = failure_length(max_length, near)

    assert found is not None
    assert 0.9 * with_sum(max_length) < found < 1.1 * with_sum(max_length * math.exp(EXCESS))
    assert found > 4 * guaranteed_length(max_length, near)


@pytest.mark.parametrize(("max_length", "near"), [(8, 7), (7, 6), (8, 4)])
def test_beyond_the_exact_lengths_six_digits_hold(max_length: int, near: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = failure_length(max_length, near)
    monkeypatch.setattr(length_limits, "EXACT_LEN", 1024)

    assert failure_length(max_length, near) == pytest.approx(exact, rel=1e-5, abs=1)


def test_a_length_past_float64_is_none() -> None:
    assert failure_length(700, 300) is None


def test_m_of_2_gains_nothing() -> None:
    output = outputs(positional(2, 0.5), 10, rerope(1))

    assert first_failure(output, 2, 0.5) == 3
    assert failure_length(2, 1) == 3


def test_n_of_m_or_more_changes_nothing_up_to_n_plus_1() -> None:
    output = outputs(positional(10, 0.5), 60, rerope(20))

    assert (output[10:21] < 0.5).all()
    assert (output[21:] > 0.5).all()


def test_the_start_tokens_weight_levels_off_at_a_third() -> None:
    assert start_weights(64, 600, rerope(16))[-1].item() == pytest.approx(1 / (2 * near_sum(16)), rel=1e-3)


# Corollary 4.1.


def test_the_stair_is_the_published_one() -> None:
    distance = torch.arange(9, -1, -1)

    assert stair(4, 2)(distance).tolist() == [7, 6, 6, 5, 5, 4, 3, 2, 1, 0]
    assert stair(4, 1)(distance).tolist() == distance.tolist()


@given(data=st.data(), max_length=st.integers(3, 120), width=st.integers(1, 60), threshold=THRESHOLDS)
@settings(max_examples=60)
def test_stair_stays_above_the_threshold_while_the_bound_holds(
    data: st.DataObject, max_length: int, width: int, threshold: float
) -> None:
    near = data.draw(st.integers(1, max_length - 1))
    t = tokens(400)

    output = outputs(positional(max_length, threshold), len(t), stair(near, width))

    assert (output[(t > max_length) & (t < guaranteed_length(max_length, near, width))] > threshold).all()


@pytest.mark.parametrize(
    ("max_length", "near", "width"), [(16, 4, 8), (24, 8, 4), (64, 16, 8), (64, 16, 50), (90, 31, 2)]
)
def test_stair_extends_past_m(max_length: int, near: int, width: int) -> None:
    assert guaranteed_length(max_length, near, width) > 10 * max_length
    output = outputs(positional(max_length, 0.5), 8 * max_length, stair(near, width))
    assert first_failure(output, max_length, 0.5) is None


@pytest.mark.parametrize(("near", "width"), [(4, 2), (4, 8), (3, 50), (7, 3)])
def test_layer_1_never_reads_less_than_the_woven_distance(near: int, width: int) -> None:
    woven = stair(near, width)(torch.arange(500)).double() + 1

    assert (positions_read(500, stair(near, width)) >= woven - 1e-9).all()


def test_stair_fails_where_its_distances_pass_the_largest_position() -> None:
    bound = guaranteed_length(64, 16, 2)
    output = outputs(positional(64, 0.5), 1600, stair(16, 2))

    assert bound == 16 + 2 * (MAX_POSITION - 1 - 16) + 2
    assert bound == 1384
    assert first_failure(output, 64, 0.5) == 1390


def test_stair_gains_little_at_n_of_1() -> None:
    assert first_failure(outputs(positional(8, 0.5), 40, stair(1, 2)), 8, 0.5) == 13


def test_stair_of_width_1_is_pe() -> None:
    torch.testing.assert_close(
        outputs(positional(16, 0.5), 60, stair(4, 1)), outputs(positional(16, 0.5), 60, identity), rtol=0, atol=0
    )
    assert guaranteed_length(16, 4, 1) <= 17


def test_stair_leaves_one_distance_more_than_n_as_it_is() -> None:
    output = outputs(positional(21, 0.5), 30, stair(20, 2))

    assert first_failure(output, 21, 0.5) == 22 == guaranteed_length(21, 20, 2)
