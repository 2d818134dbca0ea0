"""A pass without bands: several new tokens that see everything before them."""

import torch
from torch import Tensor

from mesa_lm.attention.encoding import Angles, Encoding, multiply, rotate
from mesa_lm.attention.kernels import Partial, Scoring, attend
from mesa_lm.attention.model_pass import NewTokens
from mesa_lm.attention.ranks import merge_runs
from mesa_lm.methods.base import Method


class DensePass:
    """New tokens at the end of rows; they see everything cached and, causally, one another.

    Prompts that are not cut, first and last chunks and appended pieces are such passes.
    """

    def __init__(self, tokens: NewTokens, method: Method, encoding: Encoding) -> None:
        """Prepare the pass.

        Args:
            tokens: What is appended.
            method: Bound to the model.
            encoding: The layers' position encoding.
        """
        self._tokens, self._runs, self._spared = tokens, tokens.neighbours(), encoding.spared
        # What begins a row is run by every process that shares it.
        begins = all(tokens.cache.rows[row].length == 0 for row in tokens.rows)
        self._ranks = None if begins else tokens.cache.ranks
        positions, scales = [], []
        encodings = [encoding.for_input(method, extent) for extent in tokens.extents()]
        self._own_angles: list[Angles] = []  # per row, where they depend on its length
        self._cached_shifts: list[Angles] = []  # per row, for keys that are cached at position 0
        for row, extent, own in zip(tokens.rows, tokens.extents(), encodings, strict=True):
            state = tokens.cache.rows[row]
            index = torch.arange(state.length, state.length + tokens.count)
            positions.append(index if state.weave is None else state.weave.position(index))
            if own is not encoding or encoding.follows_length:
                self._own_angles.append(own.angles(positions[-1][None]))
            if encoding.follows_length:
                seen = state.index()[state.unseen :]
                distance = seen if state.weave is None else state.weave.position(seen)
                self._cached_shifts.append(own.shift(distance[None]))
                self._stored_angles = own.angles(torch.zeros(1, tokens.count))
            scale = method.query_scale(index, extent)
            scales.append(torch.ones(tokens.count) if scale is None else scale)
        self.positions = None if self._own_angles else torch.stack(positions)
        scaled = torch.stack(scales)
        changed = bool((scaled != 1).any())
        self._query_scale = scaled.to(encoding.device, encoding.dtype)[:, None, :, None] if changed else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `GroupPass`."""
        stored = rotate(key, self._stored_angles) if self._cached_shifts else None
        if self._own_angles:
            angles = Angles(*(torch.cat(tables) for tables in zip(*self._own_angles, strict=True)))
            query, key = rotate(query, angles), rotate(key, angles)
        if self._query_scale is not None:
            query = multiply(query, self._query_scale, self._spared)
        partials = [
            self._attend_run(
                layer, run, query[run], key[run], value[run], key[run] if stored is None else stored[run], scoring
            )
            for run in self._runs
        ]
        return merge_runs(partials, [query[run] for run in self._runs], self._ranks)

    def _attend_run(
        self, layer: int, run: slice, query: Tensor, key: Tensor, value: Tensor, stored: Tensor, scoring: Scoring
    ) -> list[Partial]:
        """Attend for rows that are neighbours in the cache and hold equally many tokens, to keys that are held here."""
        cache, first = self._tokens.cache, self._tokens.rows[run.start]
        state, cached = cache.rows[first], slice(first, first + run.stop - run.start)
        partials = []
        if cache.keeps(first):
            cache.write(layer, cached, state.slots, stored, value)
            partials.append(attend(query, key, value, scoring, causal=True))
        if state.seen:
            keys, values = cache.seen(layer, cached, state.seen)
            if self._cached_shifts:
                cos, sin = (torch.cat(tables) for tables in zip(*self._cached_shifts[run], strict=True))
                keys = rotate(keys, Angles(cos, sin))
            partials.insert(0, attend(query, keys, values, scoring, causal=False))
        return partials
