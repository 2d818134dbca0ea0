"""The pass of a piece whose queries choose keys of the past, and see them beside their method's bands."""

import torch
from torch import Tensor

from mesa_lm.attention.band_pass import RowRun
from mesa_lm.attention.bands import Sum, attend_part
from mesa_lm.attention.encoding import Encoding, rotate
from mesa_lm.attention.kernels import QUERY_BLOCK, Partial, Scoring, attend
from mesa_lm.attention.model_pass import NewTokens
from mesa_lm.attention.parts import Part
from mesa_lm.methods.geometry import Extent
from mesa_lm.methods.recall import Recalled, RecallMethod


class RecallPass:
    """New tokens at the end of rows, a piece of each; every row chooses for itself."""

    positions: Tensor | None = None  # takes queries and keys as the layer has them, without positions

    def __init__(self, tokens: NewTokens, method: RecallMethod, encoding: Encoding) -> None:
        """Prepare the pass.

        Args:
            tokens: What is appended.
            method: Bound to the model.
            encoding: The layers' position encoding.
        """
        extents = enumerate(tokens.extents())
        self._runs = [_PieceRun(tokens, slice(i, i + 1), extent, method, encoding) for i, extent in extents]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `GroupPass`."""
        outputs = [run.attend(layer, query[run.part], key[run.part], value[run.part], scoring) for run in self._runs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _PieceRun(RowRun):
    """A row of a pass."""

    def __init__(
        self, tokens: NewTokens, part: slice, extent: Extent, method: RecallMethod, encoding: Encoding
    ) -> None:
        self._method, self._row = method, tokens.rows[part.start]
        self._away = tokens.cache.rows[self._row].away
        super().__init__(tokens, part, extent, method, encoding)
        self._choosing_angles = self._encoding.angles(torch.full((1, self._new), method.recalled_from))
        if method.remembers:
            index = torch.arange(self._past, self._past + self._new)
            window = (method.bands(index, extent) or ())[0]
            seen = torch.arange(int(window.start.min()), int(window.end.max()))
            visible = (seen >= window.start[:, None]) & (seen < window.end[:, None])
            self._hidden = ~visible.to(encoding.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """As `RecallPass.attend`, for this row."""
        method, total = self._method, Sum(query)
        window: tuple[Tensor, Tensor] | None = None
        for band, own, keys, values in self.scored(layer, query, key, value):
            window = window or (own, keys)
            for part in band.parts:
                total.add(attend_part(part, own, keys, values, scoring, self.mask(part, query)), part, band.queries)
        assert window is not None
        memories = self._cache.memories.get(layer) or [None] * len(self._cache.rows)
        memory = memories[self._row]

        def cached(start: int, end: int) -> Tensor:
            return self._held_keys(layer, slice(start, end))[0]

        recalled = method.recall(rotate(query, self._choosing_angles)[0], cached, self._past, memory)
        if recalled is not None:
            partial = self._attend_recalled(layer, recalled, query, scoring)
            total.add(partial, Part("full", 0, 0, self._new, recalled.key_index.shape[1]), slice(None))
        if method.remembers:
            received = received_attention(*window, total.lse, self._hidden, scoring)
            memories[self._row] = method.remember(memory, received, cached, self._past, self._new)
            self._cache.memories[layer] = memories
        return total.output()

    def _attend_recalled(self, layer: int, recalled: Recalled, query: Tensor, scoring: Scoring) -> Partial:
        """Attend to the chosen keys, where they are scored."""
        key, value = self._chosen(layer, recalled.key_index, query.shape[1])
        if recalled.key_position is not None:
            key = rotate(key, self._encoding.shift(recalled.key_position[None]))
        query = rotate(query, self._encoding.angles(recalled.query_position[None]))
        return attend(query, key, value, scoring, causal=False)

    def _chosen(self, layer: int, index: Tensor, num_heads: int) -> list[Tensor]:
        """Return the chosen keys and values, (1, num_kv_heads, count, head_dim), or num_heads if each chose its own."""
        buffers = [self._cache.keys[layer], self._cache.values[layer]]
        if self._away:  # then all that is chosen lies there
            assert self._cache.host is not None
            buffers = [self._cache.host.keys[layer], self._cache.host.values[layer]]
            index = index.to(buffers[0].device) - self._away.start
        found = []
        for buffer in buffers:
            states = buffer[self._row]
            if len(index) == 1:
                chosen = states.index_select(1, index[0])
            else:
                heads = torch.arange(num_heads, device=states.device) // (num_heads // len(states))
                chosen = states[heads[:, None], index]
            found.append(chosen[None].to(self._cache.keys[layer].device))
        return found

    def _slots(self, keys: slice) -> slice:
        start = keys.start - len(self._away) if keys.start >= self._away.stop else keys.start
        return slice(start, start + keys.stop - keys.start)

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        own = self._slots(slice(self._past, self._past + self._new))
        self._cache.write(layer, self._cached, own.start, key, value, whole_prompt=not self._method.offloaded)
        return self._cache.seen(layer, self._cached, own.stop)

    def _held_keys(self, layer: int, tokens: slice) -> Tensor:
        """Return the keys of a range of tokens, (1, num_kv_heads, tokens, head_dim)."""
        slots = self._slots(tokens)
        return self._cache.seen(layer, self._cached, slots.stop)[0][:, :, slots]


def received_attention(query: Tensor, key: Tensor, lse: Tensor, hidden: Tensor, scoring: Scoring) -> Tensor:
    """Return how much attention some keys receive from all queries together.

    Args:
        query: (1, num_heads, q_len, head_dim).
        key: (1, num_kv_heads, kv_len, head_dim).
        lse: (1, num_heads, q_len) over all that the queries see, these keys or others.
        hidden: (q_len, kv_len) which keys a query does not see.
        scoring: How the scores are computed.

    Returns:
        (num_heads, kv_len) in float32.
    """
    num_heads, num_kv_heads = query.shape[1], key.shape[1]
    turned = key[0].float().transpose(-1, -2)  # (num_kv_heads, head_dim, kv_len)
    received = torch.zeros(num_heads, key.shape[2], device=query.device)
    for start in range(0, query.shape[2], QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        own = query[0, :, block].float().reshape(num_kv_heads, -1, query.shape[3])
        scores = (own @ turned).view(num_heads, -1, key.shape[2]) * scoring.scale
        if scoring.softcap is not None:
            scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
        scores = (scores - lse[0, :, block, None]).masked_fill(hidden[block].to(query.device), -torch.inf)
        received += scores.exp().sum(1)
    return received
