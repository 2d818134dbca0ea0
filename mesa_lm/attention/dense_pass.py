"""A pass without bands: new tokens that see everything before them."""

import torch
from torch import Tensor

from mesa_lm.attention.encoding import Angles, Encoding, multiply, rotate
from mesa_lm.attention.kernels import Scoring, attend, merge_partials
from mesa_lm.attention.model_pass import NewTokens
from mesa_lm.methods.base import Method


class DensePass:
    """New tokens at the end of rows; they see everything cached and, causally, one another.

    Prompts that are not cut, first and last chunks, appended pieces and decoded tokens are such passes.
    """

    def __init__(self, tokens: NewTokens, method: Method, encoding: Encoding) -> None:
        """Prepare the pass.

        Args:
            tokens: What is appended.
            method: Bound to the model.
            encoding: The layers' position encoding.
        """
        self._tokens, self._runs, self._spared = tokens, tokens.neighbours(), encoding.spared
        angles, scales = [], []
        self._cached_shifts: list[Angles] = []  # per row, for keys that are cached at position 0
        for row, extent in zip(tokens.rows, tokens.extents(), strict=True):
            state = tokens.cache.rows[row]
            index = torch.arange(state.length, state.length + tokens.count)
            position = index if state.weave is None else state.weave.position(index)
            own = encoding.for_input(method, extent)
            angles.append(own.angles(position[None]))
            if encoding.follows_length:
                seen = torch.arange(state.length + tokens.count)
                distance = seen if state.weave is None else state.weave.position(seen)
                self._cached_shifts.append(own.shift(distance[None]))
                self._stored_angles = own.angles(torch.zeros(1, tokens.count))
            scale = method.query_scale(index, extent)
            scales.append(torch.ones(tokens.count) if scale is None else scale)
        self._angles = Angles(torch.cat([a.cos for a in angles]), torch.cat([a.sin for a in angles]))
        scaled = torch.stack(scales)
        changed = bool((scaled != 1).any())
        self._query_scale = scaled.to(encoding.device, encoding.dtype)[:, None, :, None] if changed else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `GroupPass`."""
        tokens = self._tokens
        stored = rotate(key, self._stored_angles) if self._cached_shifts else None
        query, key = rotate(query, self._angles), rotate(key, self._angles)
        if self._query_scale is not None:
            query = multiply(query, self._query_scale, self._spared)
        for i, row in enumerate(tokens.rows):
            past = tokens.cache.rows[row].length
            tokens.cache.write(layer, row, past, (key if stored is None else stored)[i], value[i])
        outputs = [self._attend_run(layer, run, query[run], key[run], value[run], scoring) for run in self._runs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_run(
        self, layer: int, run: slice, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
    ) -> Tensor:
        """Attend for rows that are neighbours in the cache and hold equally many tokens."""
        cache, new = self._tokens.cache, self._tokens.count
        first = self._tokens.rows[run.start]
        past = cache.rows[first].length
        cached = slice(first, first + run.stop - run.start)
        seen = past + 1 if new == 1 else past
        keys, values = cache.keys[layer][cached, :, :seen], cache.values[layer][cached, :, :seen]
        if self._cached_shifts:
            cos, sin = (torch.cat(tables)[:, :seen] for tables in zip(*self._cached_shifts[run], strict=True))
            keys = rotate(keys, Angles(cos, sin))
        if new == 1:
            return attend(query, keys, values, scoring, causal=False).output
        own = attend(query, key, value, scoring, causal=True)
        if past == 0:
            return own.output
        return merge_partials(attend(query, keys, values, scoring, causal=False), own)
