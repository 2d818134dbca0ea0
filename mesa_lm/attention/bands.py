"""Dense methods as bands: ranges of keys that a query scores at one pair of positions.

ReRoPE, for example, has two bands, the keys less than `window` away at their true distance and all others at distance
`window`. Each band is attention without a mask but for its slanted ends; the bands are merged by log-sum-exp, so that
memory grows with the number of keys, not with its square.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mesa_lm.attention.kernels import Partial, Scoring, attend, attend_masked
from mesa_lm.methods.geometry import Band

# Queries that share a mask at a slanted edge: fewer mask less in vain, but fill the kernel's blocks worse.
_TILE, _SMALLEST_TILE = 128, 16


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

    def add(self, part: Partial, rows: slice | Tensor) -> None:
        """Add keys.

        Args:
            part: Attention of some queries to them; where its lse is -inf, a query stays as it was.
            rows: Which queries.
        """
        output, lse = self._output[:, :, rows], self._lse[:, :, rows]
        share = torch.sigmoid(part.lse - lse).nan_to_num(0)  # nan: a query that has seen no key so far, and sees none
        output.lerp_(part.output.to(output.dtype), share.unsqueeze(-1))
        torch.logaddexp(lse, part.lse, out=lse)
        if isinstance(rows, Tensor):  # a slice gave views
            self._output[:, :, rows], self._lse[:, :, rows] = output, lse

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
    query: Tensor, keys: Callable[[int, int], tuple[Tensor, Tensor]], band: Band, scoring: Scoring, total: Sum
) -> None:
    """Add a band to the attention of a block of queries.

    Args:
        query: (batch, num_heads, q_len, head_dim), rotated to the band's query positions; only the band's queries.
        keys: Returns keys and values start..end, each (batch, num_kv_heads, end - start, head_dim), rotated to the
            band's key positions.
        band: The band.
        scoring: How the scores are computed.
        total: What to add to.
    """
    start, end = band.start, torch.maximum(band.start, band.end)
    if bool((end == start).all()):
        return
    own = slice(0, query.shape[2]) if band.queries is None else band.queries.to(query.device)
    inner = int(start[-1]), int(end[0])  # seen by every query
    if inner[0] < inner[1]:
        total.add(attend(query, *keys(*inner), scoring, causal=False), own)
        edges = [(int(start[0]), inner[0]), (inner[1], int(end[-1]))]
    else:
        edges = [(int(start[0]), int(end[-1]))]
    for edge in edges:
        if edge[0] < edge[1]:
            _attend_edge(query, *keys(*edge), edge, (start, end), scoring, own, total)


def _attend_edge(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    edge: tuple[int, int],
    bounds: tuple[Tensor, Tensor],
    scoring: Scoring,
    own: slice | Tensor,
    total: Sum,
) -> None:
    """Add keys that not every query sees, a tile of queries at a time: a tile needs few keys that some do not see.

    Args:
        query: As in `attend_band`.
        key: The edge's.
        value: The edge's.
        edge: First key, and one past the last.
        bounds: For each query its first key, and one past its last.
        scoring: How the scores are computed.
        own: Which queries of the block these are.
        total: What to add to.
    """
    start, end = bounds
    steepest = max(1, int(torch.stack([start[-1] - start[0], end[-1] - end[0]]).max()) // len(start))
    size = max(_SMALLEST_TILE, _TILE // steepest)
    for first in range(0, len(start), size):
        tile = slice(first, min(first + size, len(start)))
        low, high = max(edge[0], int(start[tile.start])), min(edge[1], int(end[tile.stop - 1]))
        if low >= high:
            continue
        index = torch.arange(low, high)
        visible = (index >= start[tile, None]) & (index < end[tile, None])
        seen = slice(low - edge[0], high - edge[0])
        part = attend_masked(query[:, :, tile], key[:, :, seen], value[:, :, seen], scoring, visible)
        total.add(part, tile if isinstance(own, slice) else own[tile])
