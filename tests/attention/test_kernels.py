"""Kernels and merging against explicit softmax."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesa_lm.attention import kernels
from mesa_lm.attention.kernels import Scoring


def explicit(query, key, value, scaling, causal):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1).double(), value.repeat_interleave(groups, 1).double()
    scores = query.double() @ key.transpose(-1, -2) * scaling
    if causal:
        q_len, kv_len = scores.shape[-2:]
        future = torch.arange(kv_len) > torch.arange(q_len)[:, None] + kv_len - q_len
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def states(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


@pytest.mark.parametrize("kernel", [kernels.attend, kernels.attend_in_blocks])
@given(
    q_len=st.integers(1, 31),
    kv_len=st.integers(1, 43),
    kv_heads=st.sampled_from((1, 2, 3)),
    groups=st.sampled_from((1, 2)),
    head_dim=st.sampled_from((3, 8, 17)),
    causal=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def test_attention_equals_softmax(kernel, q_len, kv_len, kv_heads, groups, head_dim, causal, dtype):
    if kernel is kernels.attend_in_blocks:
        groups = 1
    if causal:
        kv_len = q_len
    query = states((2, kv_heads * groups, q_len, head_dim), 0).to(dtype)
    key, value = (states((2, kv_heads, kv_len, head_dim), seed).to(dtype) for seed in (1, 2))
    output, lse = kernel(query, key, value, Scoring(0.7), causal)
    expected, expected_lse = explicit(query, key, value, 0.7, causal)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=0)


@given(q_len=st.integers(1, 19), past=st.integers(1, 300), groups=st.sampled_from((1, 3)))
def test_merging_equals_one_softmax_over_both_parts(q_len, past, groups):
    query = states((1, 2 * groups, q_len, 8), 0) * 4
    key, value = states((1, 2, past + q_len, 8), 1), states((1, 2, past + q_len, 8), 2)
    before = kernels.attend(query, key[:, :, :past], value[:, :, :past], Scoring(0.5), causal=False)
    own = kernels.attend(query, key[:, :, past:], value[:, :, past:], Scoring(0.5), causal=True)
    expected, _ = explicit(query, key, value, 0.5, causal=True)
    torch.testing.assert_close(kernels.merge([before, own]).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(kernels.merge([own, before]).double(), expected, atol=1e-5, rtol=0)


def test_blocks_of_queries_are_joined_in_order(monkeypatch):
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 4)
    query, key, value = (states((1, 2, 11, 8), seed) for seed in range(3))
    output, lse = kernels.attend_in_blocks(query, key, value, Scoring(0.5), causal=True)
    expected, expected_lse = explicit(query, key, value, 0.5, causal=True)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_scores_are_capped_where_asked_for(fused):
    query, key, value = (states((1, 2, 11, 8), seed) * 4 for seed in range(3))
    scores = 3.0 * torch.tanh(query.double() @ key.double().transpose(-1, -2) * 0.5 / 3.0)
    output, lse = kernels.attend(query, key, value, Scoring(0.5, softcap=3.0, fused=fused), causal=False)
    torch.testing.assert_close(output.double(), scores.softmax(-1) @ value.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 100])
def test_gpu_kernels(dtype, causal, head_dim):
    query = states((2, 4, 257, head_dim), 0).to("cuda", dtype)
    key, value = (states((2, 2, 257, head_dim), seed).to("cuda", dtype) for seed in (1, 2))
    output, lse = kernels.attend(query, key, value, Scoring(0.2), causal)
    expected, expected_lse = explicit(query.cpu(), key.cpu(), value.cpu(), 0.2, causal)
    atol = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-4}[dtype]
    torch.testing.assert_close(output.double().cpu(), expected, atol=atol, rtol=0)
    torch.testing.assert_close(lse.double().cpu(), expected_lse, atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gpu_masks(dtype):
    query = states((2, 4, 61, 64), 0).to("cuda", dtype)
    key, value = (states((2, 2, 67, 64), seed).to("cuda", dtype) for seed in (1, 2))
    visible = torch.arange(67) <= torch.arange(61)[:, None]
    mask = kernels.additive_mask(visible, query)
    output, _ = kernels.attend_masked(query, key, value, Scoring(0.2), mask)
    on_cpu = [tensor.cpu().float() for tensor in (query, key, value)]
    expected, _ = kernels.attend_masked(*on_cpu, Scoring(0.2), mask.cpu().float())
    atol = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-4}[dtype]
    torch.testing.assert_close(output.float().cpu(), expected, atol=atol, rtol=0)
