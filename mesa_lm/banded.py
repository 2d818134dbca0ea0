"""The pass of a method with bands: new tokens at the end of rows, each row's queries block by block."""

from functools import partial
from itertools import groupby, pairwise

import torch
from torch import Tensor

from mesa_lm.bands import Sum, attend_band, merge_rounded
from mesa_lm.cache import WovenCache
from mesa_lm.methods.base import Method
from mesa_lm.positions import Extent
from mesa_lm.prefill import rotary_for
from mesa_lm.rotary import Angles, Encoding, multiply, rotate


class Banded:
    """New tokens at the end of rows that see what their method's bands say.

    Keys are stored once, at `Method.stored_at`; a band that scores them elsewhere moves the few it needs. Angles are
    computed by the first layer and kept for the others.
    """

    def __init__(
        self, cache: WovenCache, rows: list[int], new: int, method: Method, rotary: Encoding, totals: list[int]
    ) -> None:
        """Prepare the pass.

        Args:
            cache: Holds the rows' earlier tokens.
            rows: The rows.
            new: Number of new tokens of each.
            method: Bound to the model.
            rotary: The layers' position encoding.
            totals: For each row the tokens of the input that the new ones belong to; see `Extent`.
        """
        self.cache, self.rows, self.new, self.method, self.rotary = cache, rows, new, method, rotary
        extents = [Extent(cache.rows[row].prompt_len, total) for row, total in zip(rows, totals, strict=True)]
        # Neighbours in the cache that hold equally many tokens go through the kernels together.
        kinds = [(cache.rows[row].length, extents[i], row - i) for i, row in enumerate(rows)]
        starts, start = [], 0
        for _, run in groupby(kinds):
            starts.append(start)
            start += len(list(run))
        self.runs = [
            _Run(self, slice(start, end), slice(rows[start], rows[start] + end - start), extents[start])
            for start, end in pairwise([*starts, len(rows)])
        ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store keys and values and return the attention output.

        Args:
            layer: Layer index.
            query: (rows, num_heads, new, head_dim), unrotated.
            key: (rows, num_kv_heads, new, head_dim), unrotated.
            value: Like key.
            scaling: Factor of the scores.

        Returns:
            (rows, num_heads, new, head_dim).
        """
        outputs = [run.attend(layer, query[run.part], key[run.part], value[run.part], scaling) for run in self.runs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def finish(self) -> None:
        """Count the new tokens as cached, after the last layer."""
        for row in self.rows:
            self.cache.rows[row].length += self.new


class _Run:
    """Rows of a pass that are neighbours in the cache and hold equally many tokens."""

    def __init__(self, owner: Banded, part: slice, cached: slice, extent: Extent) -> None:
        self.cache, self.method = owner.cache, owner.method
        self.rotary, self.moves_all = rotary_for(owner.method, owner.rotary, extent), owner.rotary.follows_length
        self.part, self.cached, self.extent, self.new = part, cached, extent, owner.new
        self.past = self.cache.rows[cached.start].length
        index = torch.arange(self.past, self.past + owner.new)
        self.key_angles = self.rotary.angles(self.stored_at(index)[None])
        self.key_scale = self._column(self.method.key_scale(index, extent))
        scale = self._column(self.method.query_scale(index, extent))
        places = torch.arange(owner.new).split(self.method.block_len)
        self.blocks = [_Block(self, slice(int(p[0]), int(p[-1]) + 1), index[p], scale) for p in places]

    def stored_at(self, index: Tensor) -> Tensor:
        """Return the positions at which keys are cached: 0 where angles follow the input's length."""
        return index * 0 if self.moves_all else self.method.stored_at(index, self.extent)

    def _column(self, scale: Tensor | None) -> Tensor | None:
        if scale is None or bool((scale == 1).all()):
            return None
        return scale.to(self.rotary.device, self.rotary.dtype)[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `Banded.attend`, for these rows."""
        stored = rotate(key, self.key_angles)
        if self.key_scale is not None:
            stored = multiply(stored, self.key_scale, self.rotary.spared)
        for i, row in enumerate(range(self.cached.start, self.cached.stop)):
            self.cache.write(layer, row, self.past, stored[i], value[i])
        return torch.cat([block.attend(layer, query[:, :, block.part], scaling) for block in self.blocks], dim=2)


class _Block:
    """Some consecutive queries of a run, with their bands and the angles these need."""

    def __init__(self, run: _Run, part: slice, index: Tensor, scale: Tensor | None) -> None:
        self.run, self.part = run, part
        self.bands = run.method.bands(index, run.extent) or ()
        self.scale = None if scale is None else scale[part]
        self.query_angles = [run.rotary.angles(band.query_position[None]) for band in self.bands]
        self._shifts: dict[tuple[int, int, int], Angles | None] = {}

    def attend(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        """Return (rows, num_heads, q_len, head_dim) for the block's queries, given unrotated."""
        if self.scale is not None:
            query = multiply(query, self.scale, self.run.rotary.spared)
        rounded = self.run.method.rounds_merge and self.run.new > 1
        sums = [Sum(query)] * len(self.bands) if not rounded else [Sum(query) for _ in self.bands]
        for i, (band, angles) in enumerate(zip(self.bands, self.query_angles, strict=True)):
            own = query if band.queries is None else query[:, :, band.queries.to(query.device)]
            attend_band(rotate(own, angles), partial(self._keys, layer, i), band, scaling, sums[i])
        return merge_rounded(sums) if rounded else sums[0].output()

    def _keys(self, layer: int, band: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return cached keys and values of some slots, the keys moved to where a band scores them."""
        keys = self.run.cache.keys[layer][self.run.cached, :, start:end]
        values = self.run.cache.values[layer][self.run.cached, :, start:end]
        place = (band, start, end)
        if place not in self._shifts:
            index = torch.arange(start, end)
            distance = self.bands[band].key_position(index) - self.run.stored_at(index)
            self._shifts[place] = self.run.rotary.shift(distance[None]) if bool(distance.any()) else None
        shift = self._shifts[place]
        return (keys if shift is None else rotate(keys, shift)), values
