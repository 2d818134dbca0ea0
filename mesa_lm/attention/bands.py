"""Attention of many queries to the parts of their bands, added up by log-sum-exp.

ReRoPE, for example, has two bands, the keys less than `window` away at their true distance and all others at distance
`window`. Partial results over disjoint sets of keys merge exactly, so that memory grows with the number of keys, not
with its square.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mesa_lm.attention.kernels import Partial, Scoring, attend, attend_masked
from mesa_lm.attention.parts import Part


class Sum:
    """Attention of some queries, added up over disjoint sets of keys."""

    def __init__(self, query: Tensor) -> None:
        """Start with no keys.

        Args:
            query: (batch, num_heads, q_len, head_dim), for shape, dtype and device.
        """
        self._shape, self._dtype, self._device = query.shape, query.dtype, query.device
        self._wide = torch.promote_types(query.dtype, torch.float32)
        self._is_empty = True

    def _start(self) -> None:
        batch, num_heads, q_len, head_dim = self._shape
        # In memory as the model's next product and the kernels have it: (batch, q_len, num_heads, head_dim).
        shape = (batch, q_len, num_heads, head_dim)
        self._output = torch.zeros(shape, dtype=self._wide, device=self._device).transpose(1, 2)
        self._lse = torch.full(self._shape[:-1], -torch.inf, dtype=self._wide, device=self._device)

    def add(self, partial: Partial, part: Part, queries: slice) -> None:
        """Add keys.

        Args:
            partial: Attention of a part's queries to its keys, problems as rows of the batch.
            part: The part.
            queries: Which queries the part's band has.
        """
        if part.problems > 1 and part.query_step == 0:
            partial, part = _merged(partial, part.problems), part._replace(problems=1)
        if self._is_empty:
            self._is_empty = False
            if part.problems == 1 and part.q_len == self._shape[2] and queries == slice(None):
                self._output, self._lse = partial.output.to(self._wide), partial.lse
                return
            self._start()
        output, lse = self._output[:, :, queries], self._lse[:, :, queries]
        if part.problems == 1:
            own = slice(part.query, part.query + part.q_len)
            output, lse = output[:, :, own], lse[:, :, own]
        else:
            # (batch, num_heads, q_len, ...) -> (batch, problems, num_heads, part.q_len, ...)
            own = slice(part.query, part.query + (part.problems - 1) * part.query_step + part.q_len)
            output = output[:, :, own].unfold(2, part.q_len, part.query_step).permute(0, 2, 1, 4, 3)
            lse = lse[:, :, own].unfold(2, part.q_len, part.query_step).transpose(1, 2)
            shape = len(output), part.problems
            partial = Partial(partial.output.unflatten(0, shape), partial.lse.unflatten(0, shape))
        output.lerp_(partial.output.to(output.dtype), torch.sigmoid(partial.lse - lse).unsqueeze(-1))
        torch.logaddexp(lse, partial.lse, out=lse)

    @property
    def lse(self) -> Tensor:
        """(batch, num_heads, q_len) log of the sum of the exponentiated scores."""
        return self._lse

    def output(self) -> Tensor:
        """Return (batch, num_heads, q_len, head_dim) in the queries' dtype."""
        return self._output.to(self._dtype)


def _merged(partial: Partial, problems: int) -> Partial:
    """Merge what the same queries see in several problems, rows of the batch."""
    output, lse = (states.unflatten(0, (-1, problems)) for states in partial)
    weights = lse.softmax(1)
    # The largest weight is at least 1 / problems, so that its logarithm exists.
    return Partial((weights.unsqueeze(-1) * output).sum(1), lse.amax(1) - weights.amax(1).log())


def merge_rounded(sums: Sequence[Sum]) -> Tensor:
    """Merge sums over disjoint sets of keys with weights rounded to bfloat16.

    Source:
        chunkllama_attn_replace.py of github.com/HKUNLP/ChunkLlama, which rounds in every dtype of the model.
    """
    weights = torch.stack([total.lse for total in sums]).softmax(0).bfloat16().float().unsqueeze(-1)
    outputs = torch.stack([total.output() for total in sums])
    return (weights * outputs).sum(0).to(outputs.dtype)


def attend_part(
    part: Part, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring, mask: Tensor | None
) -> Partial:
    """Attend to a part of a band, its problems as rows of the batch.

    Args:
        part: The part.
        query: (batch, num_heads, q_len, head_dim) the band's queries.
        key: (batch, num_kv_heads, kv_len, head_dim) keys from the first one of the cache on.
        value: Like key.
        scoring: How the scores are computed.
        mask: For `attend_masked` if the part is slanted.
    """
    query = _problems(query, part.query, part.q_len, part.query_step, part.problems)
    key, value = (
        _problems(states, part.key, part.kv_len, part.key_step, part.problems, part.key_stride)
        for states in (key, value)
    )
    if part.shape == "slanted":
        assert mask is not None
        return attend_masked(query, key, value, scoring, mask)
    if part.shape != "reversed":
        return attend(query, key, value, scoring, causal=part.shape == "causal")
    output, lse = attend(query.flip(2), key.flip(2), value.flip(2), scoring, causal=True)
    return Partial(output.flip(2), lse.flip(2))


def _problems(states: Tensor, first: int, length: int, step: int, count: int, stride: int = 1) -> Tensor:
    """Return `count` ranges of queries or keys, (batch * count, heads, length, head_dim); for a batch of one a view."""
    span = (length - 1) * stride + 1
    if step == 0:
        return states[:, None, :, first : first + span : stride].expand(-1, count, -1, -1, -1).flatten(0, 1)
    ranges = states[:, :, first : first + (count - 1) * step + span].unfold(2, span, step)[..., ::stride]
    return ranges.permute(0, 2, 1, 4, 3).flatten(0, 1)
