"""The theorems' transformers: each claim over ranges of M, N, E and H, and where it ends."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from theory_runs import outputs, tokens

from mesa_lm.studies.theory import stack
from mesa_lm.studies.theory.constructions import (
    MAX_POSITION,
    ONE,
    POSITION,
    WEIGHT,
    identity,
    nope,
    positional,
    rerope,
    sequence,
    stair,
    start_weight,
)
from mesa_lm.studies.theory.stack import Layer, Stack

THRESHOLDS = st.floats(-100, 100)
# How far the ramps' chords rise above the logarithm: this far between large positions, a little more between 2 and 3.
EXCESS = 0.1234


# The stack.


def test_the_stack_equals_one_pair_at_a_time() -> None:
    torch.manual_seed(0)
    width, length = 5, 23
    shapes = {
        "query": (width, 3),
        "key": (width, 3),
        "value": (width, 2),
        "output": (2, width),
        "feed_in": (width, 7),
        "feed_out": (7, width),
    }
    layer = Layer(**{name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()})
    embedding = torch.randn(11, width, dtype=torch.float64)
    ids = torch.randint(11, (length,))
    (_, found) = stack.run_stack(Stack(embedding=embedding, layers=(layer,)), ids, rerope(4))

    hidden = embedding[ids]
    for t in range(length):
        weights = [
            math.exp(float((hidden[t] @ layer.query) @ (hidden[i] @ layer.key)) - min(t - i, 4)) for i in range(t + 1)
        ]
        mixed = sum(weight * (hidden[i] @ layer.value) for i, weight in enumerate(weights)) / sum(weights)
        after = hidden[t] + mixed @ layer.output
        torch.testing.assert_close(found[t], after + (after @ layer.feed_in).relu() @ layer.feed_out)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outputs(positional(16, 0.5), 101, stair(5, 3))
    monkeypatch.setattr(stack, "BLOCK_LEN", 7)

    torch.testing.assert_close(outputs(positional(16, 0.5), 101, stair(5, 3)), whole, rtol=0, atol=1e-12)


def test_later_tokens_never_matter() -> None:
    torch.testing.assert_close(
        outputs(positional(16, 0.5), 40, rerope(5)),
        outputs(positional(16, 0.5), 90, rerope(5))[:40],
        rtol=0,
        atol=1e-12,
    )


# Theorem 3.1.


@given(max_length=st.integers(2, 400), threshold=THRESHOLDS)
@settings(max_examples=30)
def test_nope_is_above_the_threshold_exactly_below_m(max_length: int, threshold: float) -> None:
    t = tokens(2 * max_length + 5)

    output = outputs(nope(max_length, threshold), len(t), None)

    torch.testing.assert_close(output, max_length / t - 1 + threshold, rtol=1e-12, atol=1e-10)
    other = t != max_length
    assert torch.equal((output > threshold)[other], (t < max_length)[other])


def test_nope_over_thousands_of_tokens() -> None:
    output = outputs(nope(1500, 0.25), 4000, None)

    assert (output[:1499] > 0.25).all()
    assert (output[1500:] < 0.25).all()


# Theorem 3.2.


def test_layer_1_weighs_the_start_token_as_published() -> None:
    t = tokens(MAX_POSITION)
    weight = stack.run_stack(positional(2, 0.0), sequence(MAX_POSITION), identity)[1][:, WEIGHT]
    partition = (1 - t).exp().cumsum(0)

    torch.testing.assert_close(weight, (1 - t).exp() / partition, rtol=1e-12, atol=0)
    torch.testing.assert_close(weight, start_weight(t), rtol=1e-12, atol=0)
    assert (weight.diff() < 0).all()


@pytest.mark.parametrize("positions", [2, 3, 61, MAX_POSITION])
def test_the_feed_forward_net_recovers_the_position(positions: int) -> None:
    length = positions + 97
    read = stack.run_stack(positional(2, 0.0, positions), sequence(length), identity)[1][:, POSITION]

    torch.testing.assert_close(read, tokens(length).clamp(max=positions), rtol=0, atol=1e-10)


@given(max_length=st.integers(2, 150), threshold=THRESHOLDS, spare=st.integers(0, 40))
@settings(max_examples=30)
def test_pe_fails_past_m_whatever_larger_positions_the_net_knows(max_length: int, threshold: float, spare: int) -> None:
    t = tokens(2 * max_length + 50)
    construction = positional(max_length, threshold, max_length + spare)

    output = outputs(construction, len(t), identity)

    known = t <= max_length + spare
    torch.testing.assert_close(output[known], (max_length / t - 1 + threshold)[known], rtol=1e-12, atol=1e-9)
    other = t != max_length
    assert torch.equal((output > threshold)[other], (t < max_length)[other])


@pytest.mark.parametrize("max_length", [2, 64, MAX_POSITION])
def test_pe_fails_past_float64s_largest_position_too(max_length: int) -> None:
    output = outputs(positional(max_length, 0.5), 1500, identity)

    assert (output[: max_length - 1] > 0.5).all()
    assert (output[max_length:] < 0.5).all()


def test_one_product_of_single_components_does_not_cancel_the_bias() -> None:
    built = positional(16, 0.5)
    reader, last = built.layers
    query, key = torch.zeros(5, 1, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64)
    query[POSITION], key[POSITION] = 1.0, -1.0
    product = Layer(
        query=query, key=key, value=last.value, output=last.output, feed_in=last.feed_in, feed_out=last.feed_out
    )

    output = outputs(Stack(embedding=built.embedding, layers=(reader, product)), 32, identity)

    assert (output[31] - (16 / 32 - 1 + 0.5)).abs() > 1  # -t*i - (t - i): all weight on the start token
    assert last.query[ONE, 1] == 1  # where the second component stands
    assert last.key[ONE, 0] == 1


def test_the_position_is_recovered_where_float64_cannot_hold_the_weight() -> None:
    assert start_weight(torch.tensor(746.0, dtype=torch.float64)) < 1e-307
    with localcontext() as context:
        context.prec = 60
        e = Decimal(1).exp()
        partition, previous = Decimal(0), Decimal(2)
        for t in range(1, 3001):
            partition += Decimal(1 - t).exp()
            weight = Decimal(1 - t).exp() / partition
            assert weight < previous
            previous = weight
            if t % 500 == 0:
                assert abs((1 + (e - 1) / weight).ln() - t) < Decimal("1e-40")
