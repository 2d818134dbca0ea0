"""The theorems' transformers: each claim over ranges of M, N, E and H, and where it ends."""

import json
import math
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch
from command_line import in_process, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mesa_lm.errors import UsageError
from mesa_lm.studies.theory import lengths, stack
from mesa_lm.studies.theory.constructions import (
    MAX_POSITION,
    ONE,
    OUTPUT,
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
from mesa_lm.studies.theory.lengths import failure_length, guaranteed_length
from mesa_lm.studies.theory.stack import DistanceMap, Layer, Stack

THRESHOLDS = st.floats(-100, 100)
# How far the ramps' chords rise above the logarithm: this far between large positions, a little more between 2 and 3.
EXCESS = 0.1234


def outputs(construction: Stack, length: int, distance_map: DistanceMap | None) -> Tensor:
    return stack.run(construction, sequence(length), distance_map)[-1][:, OUTPUT]


def positions_read(length: int, distance_map: DistanceMap) -> Tensor:
    return stack.run(positional(2, 0.0), sequence(length), distance_map)[1][:, POSITION]


def tokens(length: int) -> Tensor:
    """t = 1 .. length."""
    return torch.arange(1, length + 1, dtype=torch.float64)


def start_weights(max_length: int, length: int, distance_map: DistanceMap, positions: int = MAX_POSITION) -> Tensor:
    """Layer 2's weight of the start token, from the output."""
    return (outputs(positional(max_length, 0.0, positions), length, distance_map) + 1) / max_length


def first_failure(output: Tensor, max_length: int, threshold: float) -> int | None:
    failed = ((output <= threshold + 1e-11) & (tokens(len(output)) > max_length)).nonzero()
    return int(failed[0]) + 1 if len(failed) else None


def near_sum(near: int) -> float:
    """C = sum of e^-j over j < N."""
    return sum(math.exp(-distance) for distance in range(near))


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
    (_, found) = stack.run(Stack(embedding=embedding, layers=(layer,)), ids, rerope(4))

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
    weight = stack.run(positional(2, 0.0), sequence(MAX_POSITION), identity)[1][:, WEIGHT]
    partition = (1 - t).exp().cumsum(0)

    torch.testing.assert_close(weight, (1 - t).exp() / partition, rtol=1e-12, atol=0)
    torch.testing.assert_close(weight, start_weight(t), rtol=1e-12, atol=0)
    assert (weight.diff() < 0).all()


@pytest.mark.parametrize("positions", [2, 3, 61, MAX_POSITION])
def test_the_feed_forward_net_recovers_the_position(positions: int) -> None:
    length = positions + 97
    read = stack.run(positional(2, 0.0, positions), sequence(length), identity)[1][:, POSITION]

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
    monkeypatch.setattr(lengths, "EXACT_LEN", 1024)

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


# The command.


def test_the_command_prints_draws_and_saves(tmp_path: Path) -> None:
    arguments = ("theory", "-M", 5, "-N", 3, "-E", 4, "-H", -1, "--length", 301, "--out", tmp_path / "new")

    result = run(*arguments)

    assert result.exit_code == 0
    assert "fails in turn at t = 287" in result.stdout
    assert result.stdout.splitlines()[-3:] == [
        str(tmp_path / "new" / f"theory.{suffix}") for suffix in ("png", "svg", "json")
    ]
    first = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    saved = json.loads(first["theory.json"])
    assert saved["parameters"] == {"max_length": 5, "near": 3, "width": 4, "threshold": -1.0, "length": 301}
    assert saved["rerope_failure"]["first"] == 287
    assert saved["rerope_failure"]["rough"] == pytest.approx(5 * math.exp(3))
    falls = {curve["name"]: curve["falls_at"] for curve in saved["constructions"]}
    assert (falls["NoPE"], falls["PE"], falls["ReRoPE weave"]) == (6, 6, 287)
    assert dict(saved["constructions"][0]["output"])[301] == pytest.approx(5 / 301 - 2)
    run(*arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == first


def test_the_command_says_where_float64_ends(tmp_path: Path) -> None:
    result = run("theory", "--length", 720, "--out", tmp_path)

    assert "PE: from t = 700 on, layer 1 reads 700, the largest position that float64 resolves" in result.stdout


@pytest.mark.parametrize("arguments", [("-M", 2, "--length", 3), ("-M", 700, "-N", 699, "--length", 701, "-E", 1)])
def test_the_command_runs_at_the_ends_of_its_ranges(arguments: tuple[object, ...], tmp_path: Path) -> None:
    assert run("theory", *arguments, "--out", tmp_path).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-M", 1), "M (--max-length) must be from 2 to 700 tokens, found 1"),
        (("-M", 701), "M (--max-length) must be from 2 to 700 tokens, found 701"),
        (("-N", 0), "N (--extrapolated-position) must be from 1 to 63 tokens, below M, found 0"),
        (("-N", 64), "N (--extrapolated-position) must be from 1 to 63 tokens, below M, found 64"),
        (("-E", 0), "E (--extrapolated-width) must be from 1 to 16384 tokens, found 0"),
        (("-H", "nan"), "H (--threshold) must be from -1000000 to 1000000 in size, found nan"),
        (("--length", 64), "--length must be from 65 to 16384 tokens, above M, found 64"),
        (("--length", 16385), "--length must be from 65 to 16384 tokens, above M, found 16385"),
    ],
)
def test_wrong_input_is_one_line(arguments: tuple[object, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        run("theory", *arguments, "--out", tmp_path / "none")

    assert str(raised.value) == message
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = in_process("theory", "-M", 4, "--length", 9, "--out", tmp_path / "file")

    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/file: cannot be written to: File exists\n"
