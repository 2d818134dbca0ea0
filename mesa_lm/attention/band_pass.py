"""The pass of a method with bands: new tokens at the end of rows, each row's queries block by block."""

from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mesa_lm.attention.bands import Sum, attend_band, merge_rounded
from mesa_lm.attention.cache import WovenCache
from mesa_lm.attention.dense_pass import rotary_for
from mesa_lm.attention.kernels import Partial, attend_masked
from mesa_lm.attention.rotary import Angles, Encoding, multiply, rotate
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent

_MOST_MOVES = 4  # positions of one query that are scored against all keys of a band, rather than moving the keys


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


class _MovedQuery(NamedTuple):
    """A band of one query, from slot `start` to `end`, with the query at several positions.

    Attributes:
        start: First key.
        end: One past the last.
        angles: Of the query's positions.
        visible: (positions, keys) which keys each of them scores.
    """

    start: int
    end: int
    angles: Angles
    visible: Tensor


class _Shift:
    """The angles that move a range of keys, kept for all layers: few distances as a table and an index into it.

    Stair PE has a band of nearly all keys per residue; angles of every key for each would outgrow the cache.
    """

    def __init__(self, distance: Tensor, rotary: Encoding) -> None:
        values, place = distance.unique(return_inverse=True)
        compact = len(values) <= _MOST_MOVES
        self._place = place.to(torch.uint8) if compact else None
        self._angles = rotary.shift((values if compact else distance)[None])

    def angles(self) -> Angles:
        """Return the angles of every key, (1, len, rotary_dim)."""
        if self._place is None:
            return self._angles
        place = self._place.to(self._angles.cos.device, torch.long)
        return Angles(self._angles.cos[:, place], self._angles.sin[:, place])


class _Block:
    """Some consecutive queries of a run, with their bands and the angles these need."""

    def __init__(self, run: _Run, part: slice, index: Tensor, scale: Tensor | None) -> None:
        self.run, self.part = run, part
        self.bands = run.method.bands(index, run.extent) or ()
        self.scale = None if scale is None else scale[part]
        self.query_angles = [run.rotary.angles(band.query_position[None]) for band in self.bands]
        self._shifts: dict[tuple[int, int, int], _Shift | None] = {}
        self._moved = [self._moved_query(band) for band in self.bands] if len(index) == 1 else [None] * len(self.bands)

    def attend(self, layer: int, query: Tensor, scaling: float) -> Tensor:
        """Return (rows, num_heads, q_len, head_dim) for the block's queries, given unrotated."""
        if self.scale is not None:
            query = multiply(query, self.scale, self.run.rotary.spared)
        rounded = self.run.method.rounds_merge and self.run.new > 1
        sums = [Sum(query)] * len(self.bands) if not rounded else [Sum(query) for _ in self.bands]
        for i, (band, angles) in enumerate(zip(self.bands, self.query_angles, strict=True)):
            moved = self._moved[i]
            if moved is not None:
                self._attend_moved(layer, query, moved, scaling, sums[i])
                continue
            own = query if band.queries is None else query[:, :, band.queries.to(query.device)]
            attend_band(rotate(own, angles), partial(self._keys, layer, i), band, scaling, sums[i])
        return merge_rounded(sums) if rounded else sums[0].output()

    def _moved_query(self, band: Band) -> _MovedQuery | None:
        """Return a band of one query with its keys left where they are stored; None where that does not pay.

        Its scores depend on distances alone, so that moving the query back does what moving all of the keys forth does.
        """
        start, end = int(band.start[0]), int(band.end[0])
        index = torch.arange(start, max(start, end))
        distance = band.key_position(index) - self.run.stored_at(index)
        values = distance.unique()
        if len(values) > _MOST_MOVES or not bool(values.any()):
            return None
        angles = self.run.rotary.angles((band.query_position - values)[None])
        return _MovedQuery(start, end, angles, distance == values[:, None])

    def _attend_moved(self, layer: int, query: Tensor, moved: _MovedQuery, scaling: float, total: Sum) -> None:
        """Add a band of one query, (rows, num_heads, 1, head_dim), given unrotated."""
        cached = self.run.cached, slice(None), slice(moved.start, moved.end)
        keys, values = self.run.cache.keys[layer][cached], self.run.cache.values[layer][cached]
        part = attend_masked(rotate(query, moved.angles), keys, values, scaling, moved.visible)
        for place in range(len(moved.visible)):
            one = slice(place, place + 1)
            total.add(Partial(part.output[:, :, one], part.lse[:, :, one]), slice(0, 1))

    def _keys(self, layer: int, band: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Return cached keys and values of some slots, the keys moved to where a band scores them."""
        keys = self.run.cache.keys[layer][self.run.cached, :, start:end]
        values = self.run.cache.values[layer][self.run.cached, :, start:end]
        place = (band, start, end)
        if place not in self._shifts:
            index = torch.arange(start, end)
            distance = self.bands[band].key_position(index) - self.run.stored_at(index)
            self._shifts[place] = _Shift(distance, self.run.rotary) if bool(distance.any()) else None
        shift = self._shifts[place]
        return (keys if shift is None else rotate(keys, shift.angles())), values
