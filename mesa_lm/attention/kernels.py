"""Attention from stock kernels: without any mask, and exact merging of partial results.

A causal pass of new tokens over cached ones is two kernel calls, all cached keys without a mask and the new keys
square-causal, joined through their log-sum-exp. So no mask or score matrix of the input's length ever exists.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

QUERY_BLOCK = 256  # queries at a time where no fused kernel is available; bounds the scores in memory


@dataclass(frozen=True, slots=True)
class Scoring:
    """How the scores of queries and keys are computed.

    Attributes:
        scale: Factor of the scores.
        softcap: c, where scores s become c tanh(s / c) before softmax, as in Gemma 2; None for none.
        fused: Whether a fused kernel may compute them.
    """

    scale: float
    softcap: float | None = None
    fused: bool = True


class Partial(NamedTuple):
    """Attention over a part of the keys.

    Attributes:
        output: (batch, num_heads, q_len, head_dim), normalised within the part.
        lse: (batch, num_heads, q_len), log of the sum of the exponentiated scores, at least float32.
    """

    output: Tensor
    lse: Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, causal: bool) -> Partial:
    """Attend to all keys, or causally to as many keys as there are queries.

    Args:
        query: (batch, num_heads, q_len, head_dim).
        key: (batch, num_kv_heads, kv_len, head_dim); num_kv_heads divides num_heads.
        value: (batch, num_kv_heads, kv_len, head_dim).
        scoring: How the scores are computed.
        causal: Query i sees keys 0..i; needs q_len == kv_len. Else every query sees every key.
    """
    batch, num_heads, q_len, head_dim = query.shape
    num_kv_heads = key.shape[1]
    if num_heads == num_kv_heads:
        return _kernel(query, key, value, scoring, causal)
    groups = num_heads // num_kv_heads
    if causal:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return _kernel(query, key, value, scoring, causal)
    # Without a mask the heads that share keys are just more queries: nothing is expanded.
    folded = query.reshape(batch, num_kv_heads, groups * q_len, head_dim)
    output, lse = _kernel(folded, key, value, scoring, causal)
    return Partial(output.reshape(batch, num_heads, q_len, head_dim), lse.reshape(batch, num_heads, q_len))


def attend_masked(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, visible: Tensor) -> Partial:
    """Attend to the visible keys; for the narrow slanted ends of bands, where a mask is small.

    Args:
        query: (batch, num_heads, q_len, head_dim).
        key: (batch, num_kv_heads, kv_len, head_dim).
        value: Like key.
        scoring: How the scores are computed.
        visible: (q_len, kv_len) bool; a query may see nothing, its lse then is -inf and its output 0.
    """
    batch, num_heads, q_len, head_dim = query.shape
    num_kv_heads = key.shape[1]
    groups = num_heads // num_kv_heads
    visible = visible.to(query.device)
    mask = torch.zeros(visible.shape, dtype=query.dtype, device=query.device).masked_fill(~visible, -torch.inf)
    folded = query.reshape(batch, num_kv_heads, groups * q_len, head_dim)
    output, lse = _kernel(folded, key, value, scoring, causal=False, mask=mask.repeat(groups, 1))
    output, lse = output.reshape(query.shape), lse.reshape(batch, num_heads, q_len)
    nothing = ~visible.any(-1)
    return Partial(output.masked_fill(nothing[:, None], 0), lse.masked_fill(nothing, -torch.inf))


def merge_partials(one: Partial, other: Partial) -> Tensor:
    """Return attention over the union of two disjoint sets of keys, (batch, num_heads, q_len, head_dim).

    Source:
        FlashAttention, arXiv 2205.14135, section 3.1: softmax over a concatenation.
    """
    weight = torch.sigmoid(other.lse - one.lse).unsqueeze(-1)
    return torch.lerp(one.output.to(weight.dtype), other.output.to(weight.dtype), weight).to(one.output.dtype)


def attend_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, causal: bool, mask: Tensor | None = None
) -> Partial:
    """Attend by plain matrix products in float32, for what no fused kernel computes.

    Args:
        query: (batch, num_heads, q_len, head_dim).
        key: (batch, num_heads, kv_len, head_dim).
        value: Like key.
        scoring: How the scores are computed.
        causal: As in `attend`.
        mask: (q_len, kv_len) added to the scores; None for none.
    """
    q_len, kv_len = query.shape[-2], key.shape[-2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    outputs, sums = [], []
    for start in range(0, q_len, QUERY_BLOCK):
        block = query[..., start : start + QUERY_BLOCK, :]
        scores = (block.to(dtype) @ key.to(dtype).transpose(-1, -2)) * scoring.scale
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        if causal:
            index = torch.arange(start, start + block.shape[-2], device=query.device)
            future = torch.arange(kv_len, device=query.device) > index[:, None]
            scores = scores.masked_fill(future, -torch.inf)
        if mask is not None:
            scores = scores + mask[start : start + QUERY_BLOCK]
        sums.append(scores.logsumexp(-1))
        outputs.append((scores.softmax(-1) @ value.to(dtype)).to(query.dtype))
    return Partial(torch.cat(outputs, dim=-2), torch.cat(sums, dim=-1))


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, causal: bool, mask: Tensor | None = None
) -> Partial:
    """Call the fused kernel of the device and dtype, if there is one and it may be used."""
    aten, scale = torch.ops.aten, scoring.scale
    usual = scoring.softcap is None and scoring.fused
    if usual and query.device.type == "cpu":
        return Partial(
            *aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, causal, attn_mask=mask, scale=scale
            )
        )
    half = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    if usual and query.device.type == "cuda" and half and mask is None:
        output, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)
        return Partial(output, lse)
    return attend_in_blocks(query, key, value, scoring, causal, mask)
