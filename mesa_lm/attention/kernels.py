"""Attention from stock kernels: without any mask, and exact merging of partial results.

A causal pass of new tokens over cached ones is two kernel calls, all cached keys without a mask and the new keys
square-causal, joined through their log-sum-exp. So no mask or score matrix of the input's length ever exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

QUERY_BLOCK = 256  # queries at a time where no fused kernel is available; bounds the scores in memory
_HEAD_MULTIPLE = 8  # components of a head that CUDA's kernels take; others are filled up with zeros
_MASK_MULTIPLE = 16  # keys per row of a mask in memory


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
    groups = query.shape[1] // key.shape[1]
    if groups == 1 or _is_flash(query, scoring):  # flash attention takes shared keys as they are
        return _kernel(query, key, value, scoring, causal)
    if causal:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return _kernel(query, key, value, scoring, causal)
    return _attend_folded(query, key, value, scoring, None)


def attend_masked(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, mask: Tensor) -> Partial:
    """Attend to some of the keys; for parts of bands where no unmasked kernel call serves.

    Args:
        query: (batch, num_heads, q_len, head_dim).
        key: (batch, num_kv_heads, kv_len, head_dim).
        value: Like key.
        scoring: How the scores are computed.
        mask: (q_len, kv_len) in the queries' dtype: 0 for a key that is seen, -inf for others;
            every query sees one.
    """
    return _attend_folded(query, key, value, scoring, mask.to(query.device))  # layers may lie on several devices


def additive_mask(visible: Tensor, like: Tensor) -> Tensor:
    """Return the mask of `attend_masked`.

    Args:
        visible: (q_len, kv_len) bool.
        like: For dtype and device.
    """
    hidden = ~visible.to(like.device)
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill(hidden, -torch.inf)


def _attend_folded(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, mask: Tensor | None) -> Partial:
    """Attend without causality, where heads that share keys are just more queries: nothing is expanded."""
    batch, num_heads, q_len, head_dim = query.shape
    groups = num_heads // key.shape[1]
    if groups == 1:
        return _kernel(query, key, value, scoring, causal=False, mask=mask)
    folded = query.reshape(batch, key.shape[1], groups * q_len, head_dim)
    repeated = None if mask is None else mask.repeat(groups, 1)
    output, lse = _kernel(folded, key, value, scoring, causal=False, mask=repeated)
    return Partial(output.reshape(query.shape), lse.reshape(batch, num_heads, q_len))


def merge(partials: Sequence[Partial]) -> Tensor:
    """Return attention over the union of disjoint sets of keys, (batch, num_heads, q_len, head_dim).

    Source:
        FlashAttention, arXiv 2205.14135, section 3.1: softmax over a concatenation.
    """
    if len(partials) == 1:
        return partials[0].output
    weights = torch.stack([partial.lse for partial in partials]).softmax(0).unsqueeze(-1)
    total = partials[0].output * weights[0]  # the output first: it is laid out in memory like that
    for weight, partial in zip(weights[1:], partials[1:], strict=True):
        total.addcmul_(weight, partial.output)
    return total.to(partials[0].output.dtype)


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


def _has_kernel(query: Tensor, scoring: Scoring) -> bool:
    """Tell whether a fused kernel computes the scores; a meta device, for counting kernels, is treated like CUDA."""
    dtypes = {"cpu": (torch.float64, torch.float32), "cuda": (torch.float32,), "meta": (torch.float32,)}
    known = (*dtypes.get(query.device.type, ()), torch.float16, torch.bfloat16)
    return scoring.fused and scoring.softcap is None and query.device.type in dtypes and query.dtype in known


def _is_flash(query: Tensor, scoring: Scoring) -> bool:
    """Tell whether it is CUDA's flash attention, for scores without a mask."""
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    return _has_kernel(query, scoring) and query.device.type != "cpu" and is_half and query.shape[-1] <= 256


def _kernel(
    query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, causal: bool, mask: Tensor | None = None
) -> Partial:
    """Call the fused kernel of the device and dtype, if there is one and it may be used."""
    aten, scale, head_dim, q_len = torch.ops.aten, scoring.scale, query.shape[-1], query.shape[-2]
    if not _has_kernel(query, scoring):
        return attend_in_blocks(query, key, value, scoring, causal, mask)
    if query.device.type == "cpu":
        return Partial(
            *aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, 0.0, causal, attn_mask=mask, scale=scale
            )
        )
    missing = -head_dim % _HEAD_MULTIPLE
    if missing:
        query, key, value = (pad(states, (0, missing)) for states in (query, key, value))
    if mask is None and _is_flash(query, scoring):
        output, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)
    else:
        bias = None if mask is None else _aligned(mask).expand(*query.shape[:2], -1, -1)
        output, lse, *_ = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, 0.0, causal, scale=scale
        )
    return Partial(output[..., :head_dim], lse[..., :q_len])  # lse may be filled up to a multiple of 32 queries


def _aligned(mask: Tensor) -> Tensor:
    """Return a mask whose rows begin where the memory-efficient kernel can load them, as torch lays them out itself."""
    missing = -mask.shape[-1] % _MASK_MULTIPLE
    return pad(mask, (0, missing))[..., : mask.shape[-1]] if missing else mask
