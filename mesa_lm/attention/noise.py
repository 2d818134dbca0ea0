"""Causal attention with noise on the scores, by plain matrix products."""

import torch
from torch import Tensor

from mesa_lm.attention.kernels import QUERY_BLOCK, Scoring
from mesa_lm.methods.geometry import Noise


def attend_noisily(query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, noise: Noise, layer: int) -> Tensor:
    """Attend causally, the last query seeing all keys.

    Draws depend on the seed, the layer, the number of keys, the query, its head and the key; not on the row or the
    device.

    Args:
        query: (batch, num_heads, q_len, head_dim).
        key: (batch, num_kv_heads, kv_len, head_dim).
        value: Like key.
        scoring: How the scores are computed.
        noise: Added to them.
        layer: Layer index.

    Returns:
        (batch, num_heads, q_len, head_dim).
    """
    num_heads, q_len = query.shape[1:3]
    kv_len, dtype = key.shape[2], torch.promote_types(query.dtype, torch.float32)
    groups = num_heads // key.shape[1]
    key, value = (states.to(dtype).repeat_interleave(groups, dim=1) for states in (key, value))
    draws = torch.Generator().manual_seed(((noise.seed * 4099 + layer) * 2**31 + kv_len) % 2**63)
    keys, outputs = torch.arange(kv_len), []
    for start in range(0, q_len, QUERY_BLOCK):
        index = torch.arange(start, min(start + QUERY_BLOCK, q_len))[:, None] + kv_len - q_len
        own = query[:, :, start : start + QUERY_BLOCK].to(dtype)
        scores = (own @ key.transpose(-1, -2)) * scoring.scale
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        added = torch.randn(num_heads, len(index), kv_len, generator=draws) * noise.deviation(index, keys)
        scores = scores + added.masked_fill(keys > index, -torch.inf).to(scores)
        outputs.append((scores.softmax(-1) @ value).to(query.dtype))
    return torch.cat(outputs, dim=2)
