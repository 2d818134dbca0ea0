"""Dense methods as bands: ranges of keys that a query scores at one pair of positions.

ReRoPE, for example, has two bands, the keys less than `window` away at their true distance and all others at distance
`window`. Each band is attention without a mask but for its slanted ends; the bands are merged by log-sum-exp, so that
memory grows with the number of keys, not with its square.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mesa_lm.engine import Partial, attend, attend_masked
from mesa_lm.positions import Band


class Sum:
    """Attention of a block of queries, added up over disjoint sets of keys."""

    def __init__(self, query: Tensor) -> None:
        """Start with no keys.

        Args:
            query: (batch, num_heads, q_len, head_dim), for shape, dtype and device.
        """
        dtype = torch.promote_types(query.dtype, torch.float32)
        self._dtype = query.dtype
        self._output = torch.zeros(query.shape, dtype=dtype, device=query.device)
        self._lse = torch.full(query.shape[:-1], -torch.inf, dtype=dtype, device=query.device)

    def add(self, part: Partial, queries: Tensor | None) -> None:
        """Add keys: for all queries, or for some, which a part with lse = -inf leaves as they were."""
        rows = slice(None) if queries is None else queries.to(self._lse.device)
        output, lse = self._output[:, :, rows], self._lse[:, :, rows]
        # The maximum is finite as soon as a query has seen a key; -inf - -inf must not arise before.
        highest = torch.maximum(lse, part.lse)
        offset = highest.masked_fill(highest == -torch.inf, 0)
        weights = (lse - offset).exp(), (part.lse - offset).exp()
        total = weights[0] + weights[1]
        share = (weights[1] / total.clamp(min=torch.finfo(total.dtype).tiny)).unsqueeze(-1)
        self._output[:, :, rows] = torch.lerp(output, part.output.to(output.dtype), share)
        self._lse[:, :, rows] = total.log() + offset

    @property
    def lse(self) -> Tensor:
        """(batch, num_heads, q_len) log of the sum of the exponentiated scores."""
        return self._lse

    def output(self) -> Tensor:
        """Return (batch, num_heads, q_len, head_dim) in the queries' dtype."""
        return self._output.to(self._dtype)


def merge_rounded(sums: list[Sum]) -> Tensor:
    """Merge sums over disjoint sets of keys with weights rounded to bfloat16.

    Source:
        chunkllama_attn_replace.py of github.com/HKUNLP/ChunkLlama, which rounds in every dtype of the model.
    """
    weights = torch.stack([total.lse for total in sums]).softmax(0).bfloat16().float().unsqueeze(-1)
    outputs = torch.stack([total.output() for total in sums])
    return (weights * outputs).sum(0).to(outputs.dtype)


def attend_band(
    query: Tensor, keys: Callable[[int, int], tuple[Tensor, Tensor]], band: Band, scaling: float, total: Sum
) -> None:
    """Add a band to the attention of a block of queries.

    Args:
        query: (batch, num_heads, q_len, head_dim), rotated to the band's query positions; only the band's queries.
        keys: Returns keys and values start..end, each (batch, num_kv_heads, end - start, head_dim), rotated to the
            band's key positions.
        band: The band.
        scaling: Factor of the scores.
        total: What to add to.
    """
    start, end = band.start, torch.maximum(band.start, band.end)
    if bool((end == start).all()):
        return
    inner = int(start[-1]), int(end[0])  # seen by every query
    if inner[0] < inner[1]:
        total.add(attend(query, *keys(*inner), scaling, causal=False), band.queries)
        edges = [(int(start[0]), inner[0]), (inner[1], int(end[-1]))]
    else:
        edges = [(int(start[0]), int(end[-1]))]
    for first, last in edges:
        if first < last:
            index = torch.arange(first, last)
            visible = (index >= start[:, None]) & (index < end[:, None])
            total.add(attend_masked(query, *keys(first, last), scaling, visible), band.queries)
