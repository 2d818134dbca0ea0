"""Queries that choose what they see: what their tokens leave behind, and keys that lie in host memory."""

import math

import pytest
import torch
from helpers import decode, distinct_ids
from method_cases import CASES
from stand_in_accelerator import OnDevice, StandIn, on_device, on_host
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.attention.kernels import Scoring
from mesa_lm.attention.noise import attend_noisily
from mesa_lm.attention.recall_pass import received_attention
from mesa_lm.errors import ModelError, UsageError
from mesa_lm.methods.geometry import Noise

INFLLM = CASES["infllm"].short


def states(heads: int, length: int, seed: int) -> torch.Tensor:
    return torch.randn(1, heads, length, 6, generator=torch.Generator().manual_seed(seed))


def test_blocks_in_host_memory_leave_the_device_bounded():
    """On a stand-in for a GPU: keys of the window and of the first tokens lie there, and no others."""
    model, ids = tiny_model(vocab_size=211), distinct_ids(205)
    with torch.no_grad(), mesa_lm.extrapolate(model, "infllm", **INFLLM):
        expected = decode(model, ids, 150)
    there = on_device(tiny_model(vocab_size=211))
    with StandIn(), torch.no_grad(), mesa_lm.extrapolate(there, "infllm", **INFLLM, offload=True):
        output = there(OnDevice(ids[None, :150]), use_cache=True)
        logits = [on_host(output.logits[0])]
        for token in ids[150:]:
            output = there(OnDevice(token.view(1, 1)), past_key_values=output.past_key_values, use_cache=True)
            logits.append(on_host(output.logits[0]))
        cache = woven_layer(output.past_key_values).woven
    torch.testing.assert_close(torch.cat(logits), expected, atol=1e-4, rtol=0)
    # 3 first tokens, less than a window and a block of others, a piece; a buffer begins with room for 64 more.
    assert max(keys.shape[2] for keys in cache.keys.values()) <= 3 + 11 + 5 + 7 + 64
    assert all(isinstance(keys, OnDevice) for keys in cache.keys.values())
    assert cache.rows[0].away == range(3, 3 + 5 * ((204 - 11 - 3) // 5))
    assert not any(isinstance(keys, OnDevice) for keys in cache.host.keys.values())


@pytest.mark.parametrize(
    ("name", "more"), [("infllm", {}), ("infllm", {"offload": True}), ("reattention", {}), ("gali", {})]
)
def test_reordered_rows_take_along_what_they_left(name, more):
    model, order = tiny_model(vocab_size=211), torch.tensor([2, 0, 0])
    rows = torch.stack([distinct_ids(90, seed) for seed in range(3)])
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **CASES[name].short, **more):
        expected = torch.stack([decode(model, row, 60)[60:] for row in rows[order]])
        cache = model(rows[:, :60], use_cache=True).past_key_values
        cache.reorder_cache(order)
        tokens = rows[order, 60:].T
        found = [model(token[:, None], past_key_values=cache, use_cache=True).logits for token in tokens]
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-4, rtol=0)


def test_what_tokens_left_behind_cannot_be_taken_back():
    model, ids = tiny_model(), distinct_ids(50)[None] % 57 + 1
    with torch.no_grad(), mesa_lm.extrapolate(model, "infllm", **INFLLM):
        cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(UsageError, match="cannot be cropped"):
            cache.crop(-3)


def test_a_cache_of_the_untouched_model_says_too_little():
    """Blocks are represented by what their tokens received, which nobody has written down."""
    model, ids = tiny_model(), distinct_ids(50)[None] % 57 + 1
    with torch.no_grad():
        cache = model(ids[:, :9], use_cache=True).past_key_values
        with (
            mesa_lm.extrapolate(model, "infllm", **INFLLM),
            pytest.raises(ModelError, match="9 tokens that were not run under method 'infllm'"),
        ):
            model(ids[:, 9:], past_key_values=cache, use_cache=True)


def test_within_the_window_a_call_without_cache_is_left_to_the_model():
    model, ids = tiny_model(), distinct_ids(11)[None] % 57 + 1
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        with mesa_lm.extrapolate(model, "infllm", **INFLLM):
            assert torch.equal(model(ids, use_cache=False).logits, before)
            torch.testing.assert_close(model(ids, use_cache=True).logits, before, atol=1e-4, rtol=0)


def test_attention_that_keys_receive_is_the_sum_of_softmaxes():
    query, key = states(4, 5, 0), states(2, 7, 1)
    hidden = torch.arange(7) > torch.arange(5)[:, None] + 2
    lse = torch.randn(1, 4, 5) + 2
    for softcap in (None, 1.5):
        found = received_attention(query, key, lse, hidden, Scoring(0.3, softcap))
        for head in range(4):
            for j in range(7):
                total = 0.0
                for t in range(5):
                    score = 0.3 * float(query[0, head, t] @ key[0, head // 2, j])
                    score = score if softcap is None else softcap * math.tanh(score / softcap)
                    total += 0.0 if hidden[t, j] else math.exp(score - float(lse[0, head, t]))
                assert math.isclose(float(found[head, j]), total, rel_tol=1e-5)


def test_noise_is_added_to_scores_pair_by_pair():
    query, key, value = states(4, 3, 0), states(2, 9, 1), states(2, 9, 2)
    noise = Noise(lambda t, j: (t - j) / 9.0 * (j % 2), seed=5)
    found = attend_noisily(query, key, value, Scoring(0.3), noise, layer=1)
    draws = torch.randn(4, 3, 9, generator=torch.Generator().manual_seed((5 * 4099 + 1) * 2**31 + 9))
    for head in range(4):
        for i in range(3):
            t = 6 + i
            scores = [
                0.3 * float(query[0, head, i] @ key[0, head // 2, j]) + float(draws[head, i, j]) * (t - j) / 9 * (j % 2)
                for j in range(t + 1)
            ]
            weights = torch.tensor(scores).softmax(0)
            torch.testing.assert_close(found[0, head, i], weights @ value[0, head // 2, : t + 1], atol=1e-5, rtol=0)


def test_noise_follows_its_seed_and_nothing_else():
    model, ids = tiny_model(), torch.stack([distinct_ids(60) % 57 + 1] * 2)
    logits = []
    for options in ({"noise": 1.0}, {"noise": 1.0}, {"noise": 1.0, "seed": 1}, {}):
        with torch.no_grad(), mesa_lm.extrapolate(model, "gali", **options):
            both = model(ids).logits
            logits.append(decode(model, ids[0], 57))
        torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=0)
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] - logits[2]).abs().max() > 1e-3 and (logits[0] - logits[3]).abs().max() > 1e-3
