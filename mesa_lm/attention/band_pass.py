"""The pass of a method with bands: new tokens at the end of rows, each row's queries block by block."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mesa_lm.attention.bands import Sum, attend_band, merge_rounded
from mesa_lm.attention.encoding import Angles, Encoding, multiply, rotate
from mesa_lm.attention.kernels import Partial, Scoring, attend_masked
from mesa_lm.attention.model_pass import NewTokens
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent

_MOST_MOVES = 4  # positions of one query that are scored against all keys of a band, rather than moving the keys


class BandPass:
    """New tokens at the end of rows that see what their method's bands say.

    Keys are stored once, at `Method.stored_at`; a band that scores them elsewhere moves the few it needs. Angles are
    computed by the first layer and kept for the others.
    """

    def __init__(self, tokens: NewTokens, method: Method, encoding: Encoding) -> None:
        """Prepare the pass.

        Args:
            tokens: What is appended.
            method: Bound to the model; it has bands.
            encoding: The layers' position encoding.
        """
        extents = tokens.extents()
        self._runs = [_RowRun(tokens, run, extents[run.start], method, encoding) for run in tokens.neighbours(extents)]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `GroupPass`."""
        outputs = [run.attend(layer, query[run.part], key[run.part], value[run.part], scoring) for run in self._runs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class _RowRun:
    """Rows of a pass that are neighbours in the cache and hold equally many tokens of equally long inputs."""

    def __init__(self, tokens: NewTokens, part: slice, extent: Extent, method: Method, encoding: Encoding) -> None:
        first = tokens.rows[part.start]
        self.cache, self.method, self.part, self.extent = tokens.cache, method, part, extent
        self.cached = slice(first, first + part.stop - part.start)
        self.encoding, self.moves_all = encoding.for_input(method, extent), encoding.follows_length
        self.past, self.new = self.cache.rows[first].length, tokens.count
        index = torch.arange(self.past, self.past + self.new)
        self.key_angles = self.encoding.angles(self.stored_at(index)[None])
        self.key_scale = self._column(method.key_scale(index, extent))
        scale = self._column(method.query_scale(index, extent))
        places = torch.arange(self.new).split(method.block_len)
        self.blocks = [_QueryBlock(self, slice(int(p[0]), int(p[-1]) + 1), index[p], scale) for p in places]

    def stored_at(self, index: Tensor) -> Tensor:
        """Return the positions at which keys are cached: 0 where angles follow the input's length."""
        return index * 0 if self.moves_all else self.method.stored_at(index, self.extent)

    def _column(self, scale: Tensor | None) -> Tensor | None:
        if scale is None or bool((scale == 1).all()):
            return None
        return scale.to(self.encoding.device, self.encoding.dtype)[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """As `BandPass.attend`, for these rows."""
        stored = rotate(key, self.key_angles)
        if self.key_scale is not None:
            stored = multiply(stored, self.key_scale, self.encoding.spared)
        for i, row in enumerate(range(self.cached.start, self.cached.stop)):
            self.cache.write(layer, row, self.past, stored[i], value[i])
        return torch.cat([block.attend(layer, query[:, :, block.part], scoring) for block in self.blocks], dim=2)


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

    def __init__(self, distance: Tensor, encoding: Encoding) -> None:
        values, place = distance.unique(return_inverse=True)
        compact = len(values) <= _MOST_MOVES
        self._place = place.to(torch.uint8) if compact else None
        self._angles = encoding.shift((values if compact else distance)[None])

    def angles(self) -> Angles:
        """Return the angles of every key, (1, len, rotary_dim)."""
        if self._place is None:
            return self._angles
        place = self._place.to(self._angles.cos.device, torch.long)
        return Angles(self._angles.cos[:, place], self._angles.sin[:, place])


class _QueryBlock:
    """Some consecutive queries of a run, with their bands and the angles these need."""

    def __init__(self, run: _RowRun, part: slice, index: Tensor, scale: Tensor | None) -> None:
        self.run, self.part = run, part
        self.bands = run.method.bands(index, run.extent) or ()
        self.scale = None if scale is None else scale[part]
        self.query_angles = [run.encoding.angles(band.query_position[None]) for band in self.bands]
        self._shifts: dict[tuple[int, int, int], _Shift | None] = {}
        self._moved = [self._moved_query(band) for band in self.bands] if len(index) == 1 else [None] * len(self.bands)

    def attend(self, layer: int, query: Tensor, scoring: Scoring) -> Tensor:
        """Return (rows, num_heads, q_len, head_dim) for the block's queries, given unrotated."""
        if self.scale is not None:
            query = multiply(query, self.scale, self.run.encoding.spared)
        rounded = self.run.method.rounds_merge and self.run.new > 1
        sums = [Sum(query)] * len(self.bands) if not rounded else [Sum(query) for _ in self.bands]
        for i, (band, angles) in enumerate(zip(self.bands, self.query_angles, strict=True)):
            moved = self._moved[i]
            if moved is not None:
                self._attend_moved(layer, query, moved, scoring, sums[i])
                continue
            own = query if band.queries is None else query[:, :, band.queries.to(query.device)]
            attend_band(rotate(own, angles), partial(self._keys, layer, i), band, scoring, sums[i])
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
        angles = self.run.encoding.angles((band.query_position - values)[None])
        return _MovedQuery(start, end, angles, distance == values[:, None])

    def _attend_moved(self, layer: int, query: Tensor, moved: _MovedQuery, scoring: Scoring, total: Sum) -> None:
        """Add a band of one query, (rows, num_heads, 1, head_dim), given unrotated."""
        cached = self.run.cached, slice(None), slice(moved.start, moved.end)
        keys, values = self.run.cache.keys[layer][cached], self.run.cache.values[layer][cached]
        part = attend_masked(rotate(query, moved.angles), keys, values, scoring, moved.visible)
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
            self._shifts[place] = _Shift(distance, self.run.encoding) if bool(distance.any()) else None
        shift = self._shifts[place]
        return (keys if shift is None else rotate(keys, shift.angles())), values
