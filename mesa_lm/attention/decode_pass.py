"""The pass of one new token per row: few kernels, whatever the method.

Where a band scores its keys elsewhere than they are stored, one of four things serves it: the query at other positions,
where the keys' distances are few; a buffer of the last keys at their true positions, in which each token replaces the
one that leaves the band; or the band's keys are moved.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mesa_lm.attention.cache import WovenCache
from mesa_lm.attention.encoding import Angles, Encoding, multiply, rotate
from mesa_lm.attention.kernels import Partial, Scoring, additive_mask, attend, attend_masked
from mesa_lm.attention.model_pass import NewTokens
from mesa_lm.attention.pair_selection import chosen_components, doubled_keys, doubled_query
from mesa_lm.attention.ranks import merge_runs
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent

_MOST_MOVES = 4  # positions of the query that are scored against all keys of a band, rather than moving the keys
_FEW_KEYS = 64  # which are moved rather than masked


@dataclass(slots=True)
class _SeenKeys:
    """A band of one query.

    Attributes:
        start: First key.
        end: One past the last.
        slots: Where they lie in the cache.
        places: Which of the run's query positions score them.
        visible: (places, keys) which keys each of them scores; None: all.
        distance: (keys,) how far the keys are moved; None: they are not.
        is_recent: Whether they are taken from the buffer of recent keys.
        interpolated: As in `Band`.
        other_distance: (keys,) how far they are moved for pairs that a head does not select; None: it selects all.
        other_place: Which position of the query scores those.
    """

    start: int
    end: int
    slots: slice
    places: slice
    visible: Tensor | None = None
    distance: Tensor | None = None
    is_recent: bool = False
    interpolated: bool = False
    shift: Angles | None = field(default=None)
    other_distance: Tensor | None = None
    other_place: int = 0
    mask: Tensor | None = field(default=None)
    other_shift: Angles | None = field(default=None)


class DecodePass:
    """One new token at the end of each row."""

    def __init__(self, tokens: NewTokens, method: Method, encoding: Encoding) -> None:
        """Prepare the pass.

        Args:
            tokens: What is appended, one for each row.
            method: Bound to the model.
            encoding: The layers' position encoding.
        """
        extents = tokens.extents()
        runs = tokens.neighbours(extents)
        self._runs = [_TokenRun(tokens, run, extents[run.start], method, encoding) for run in runs]
        self._ranks = tokens.cache.ranks
        self.positions: Tensor | None = None
        if not any(run.takes_raw for run in self._runs):
            lengths = [[tokens.cache.rows[row].length] for row in tokens.rows]
            self.positions = torch.tensor(lengths)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `GroupPass`."""
        queries = [query] if len(self._runs) == 1 else [query[run.part] for run in self._runs]
        partials = [
            run.attend(layer, own, key[run.part], value[run.part], scoring)
            for run, own in zip(self._runs, queries, strict=True)
        ]
        return merge_runs(partials, queries, self._ranks)


class _TokenRun:
    """Rows that are neighbours in the cache and hold equally many tokens of equally long inputs.

    Attributes:
        part: Which rows of the pass.
        takes_raw: Whether queries and keys come without positions, else at the new token's index.
    """

    def __init__(self, tokens: NewTokens, part: slice, extent: Extent, method: Method, encoding: Encoding) -> None:
        first, extent = tokens.rows[part.start], extent._replace(pairs=encoding.pairs)
        self.part = part
        self._cache: WovenCache = tokens.cache
        self._rows = slice(first, first + part.stop - part.start)
        state = tokens.cache.rows[first]
        self._past = state.length
        self._is_kept = tokens.cache.keeps(first)
        self._count = state.seen + self._is_kept  # keys that are held here, the new one included
        own = encoding.for_input(method, extent)
        self._follows_length, self._spared = encoding.follows_length, encoding.spared
        self._device, self._encoding = encoding.device, own
        self._selected_by_heads = method.selected_by_heads
        index = torch.tensor([self._past])
        bands = method.bands(index, extent) if method.has_bands else None
        self.takes_raw = bands is not None or own is not encoding or encoding.follows_length
        scale, key_scale = method.query_scale(index, extent), method.key_scale(index, extent)
        self._query_scale = 1.0 if scale is None else float(scale)
        self._key_scale = 1.0 if key_scale is None else float(key_scale)
        self._places: list[Tensor] = []  # positions of the query, each (1,) or (1, pairs)
        if bands is None:
            weave = state.weave
            self._bands = [_SeenKeys(0, self._count, slice(0, self._count), slice(0, 1))] if self._count else []
            self._places = [index]
            self._stored = index * (not self._follows_length)
            if self._follows_length:
                held = state.index()[state.unseen :]
                seen = torch.cat([held, index[: self._is_kept]])
                for band in self._bands:
                    band.distance = seen if weave is None else weave.position(seen)
        else:
            method_stored_at = method.stored_at

            def stored_at(keys: Tensor) -> Tensor:
                return method_stored_at(keys, extent) * (not self._follows_length)

            self._stored = stored_at(index)
            served = [self._seen(band, stored_at) for band in bands]
            self._bands = [band for band in served if band is not None]
        self._recent_len = next((seen.end - seen.start for seen in self._bands if seen.is_recent), 0)
        if self.takes_raw:
            self._compute_angles(method, extent)

    def _seen(self, band: Band, stored_at: Callable[[Tensor], Tensor]) -> _SeenKeys | None:
        """Return how a band is served; None if it has no keys."""
        seen = self._seen_alike(band, stored_at)
        if seen is not None and band.others is not None:
            query_position, key_position = band.others
            index = torch.arange(seen.start, seen.end)
            seen.other_place, seen.other_distance = len(self._places), key_position(index) - stored_at(index)
            self._places.append(query_position)
        return seen

    def _seen_alike(self, band: Band, stored_at: Callable[[Tensor], Tensor]) -> _SeenKeys | None:
        """Return how a band is served, but for pairs that heads do not select."""
        start, end, place = int(band.start), int(band.end), band.query_position
        if end <= start:
            return None
        first, slot = len(self._places), self._cache.slot(self._rows.start, start)
        slots = slice(slot, slot + end - start)
        if band.unmoved and not self._follows_length:
            self._places.append(place)
            return _SeenKeys(start, end, slots, slice(first, first + 1))
        index = torch.arange(start, end)
        distance = band.key_position(index) - stored_at(index)
        low, high = float(distance.min()), float(distance.max())
        is_even = low == high or (high - low < _MOST_MOVES and len(index) > _FEW_KEYS and distance.ndim == 1)
        few = range(int(low), int(high) + 1) if is_even and not distance.is_floating_point() else ()
        values = [value for value in few if len(few) == 1 or bool((distance == value).any())]
        if values or low == high == 0:
            # Scores depend on distances alone: moving the query back does what moving all of the keys forth does.
            self._places += [place - value for value in values or [0]]
            visible = distance == torch.tensor(values)[:, None] if len(values) > 1 else None
            return _SeenKeys(start, end, slots, slice(first, len(self._places)), visible)
        self._places.append(place)
        seen = _SeenKeys(start, end, slots, slice(first, first + 1), None, distance, interpolated=band.interpolated)
        is_true = bool((band.key_position(index[-1:]) == self._past).all())
        seen.is_recent = start > 0 and end == self._past + 1 and is_true and not self._follows_length
        return seen

    def _compute_angles(self, method: Method, extent: Extent) -> None:
        """Compute all angles that the layers share, from one copy to the device."""
        rows = self._cache.rows[self._rows]
        self._rebuilds = self._recent_len > 0 and any(row.recent_len != self._past for row in rows)
        for row in rows:
            row.recent_len = self._past + 1 if self._recent_len else -1
        moved = [seen for seen in self._bands if seen.distance is not None and (self._rebuilds or not seen.is_recent)]
        others = [seen for seen in self._bands if seen.other_distance is not None]
        masked = [seen for seen in self._bands if seen.visible is not None]
        # Where the token is stored, and, for the buffer of recent keys, its index.
        own = [self._stored, torch.full_like(self._stored, self._past)] if self._recent_len else [self._stored]
        numbers = [torch.cat([*self._places, *own]).float()]
        numbers += [seen.distance.float() for seen in moved if seen.distance is not None]
        numbers += [seen.other_distance.float() for seen in others if seen.other_distance is not None]
        numbers += [additive_mask(seen.visible, numbers[0]).flatten() for seen in masked if seen.visible is not None]
        on_device = torch.cat(numbers).to(self._device)
        positions, *rest = on_device.split([len(part) for part in numbers])
        self._angles = self._encoding.angles(positions[None])
        for seen, distance in zip(moved, rest[: len(moved)], strict=True):
            shift = self._encoding.interpolated_shift if seen.interpolated else self._encoding.shift
            seen.shift = shift(distance[None])
        for seen, distance in zip(others, rest[len(moved) : len(moved) + len(others)], strict=True):
            seen.other_shift = self._encoding.shift(distance[None])
        for seen, mask in zip(masked, rest[len(moved) + len(others) :], strict=True):
            seen.mask = mask.view(-1, seen.end - seen.start).to(self._encoding.dtype)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> list[Partial]:
        """Store keys and values and attend, for these rows, to disjoint sets of keys that are held here."""
        if self._key_scale != 1:
            key = multiply(key, self._key_scale, self._spared)
        if self._query_scale != 1:
            if self._spared:
                query = multiply(query, self._query_scale, self._spared)
            else:
                scoring = replace(scoring, scale=scoring.scale * self._query_scale)
        if self.takes_raw:
            # All heads at all positions: some in vain, but in half as many kernels.
            rotated = rotate(torch.cat([query, key], dim=1), self._angles)
            places, num_heads = len(self._places), query.shape[1]
            query = rotated[:, :num_heads, :places]  # (rows, num_heads, places, head_dim)
            key = rotated[:, num_heads:, places:]  # as it is stored, and at its index
        if self._is_kept:
            keys, values = self._cache.append(layer, self._rows, key[:, :, :1], value)
        else:
            keys, values = self._cache.seen(layer, self._rows, self._count)
        if self._recent_len:
            self._write_recent(layer, key[:, :, 1:], value)
        partials: list[Partial] = []
        for seen in self._bands:
            own = query[:, :, seen.places]
            if seen.is_recent:
                partials.append(attend(own, *self._cache.recent(layer, self._rows), scoring, causal=False))
                continue
            band_keys, band_values = keys[:, :, seen.slots], values[:, :, seen.slots]
            if seen.shift is not None:
                band_keys = rotate(band_keys, seen.shift)
            if seen.other_shift is not None:
                partials.append(self._attend_selected(layer, seen, query, band_keys, keys, band_values, scoring))
                continue
            if seen.mask is None:
                partials.append(attend(own, band_keys, band_values, scoring, causal=False))
                continue
            several = attend_masked(own, band_keys, band_values, scoring, seen.mask.to(own.dtype))
            partials += [
                Partial(several.output[:, :, i : i + 1], several.lse[:, :, i : i + 1]) for i in range(len(seen.mask))
            ]
        return partials

    def _attend_selected(
        self, layer: int, seen: _SeenKeys, query: Tensor, key: Tensor, keys: Tensor, value: Tensor, scoring: Scoring
    ) -> Partial:
        """Attend to a band that heads have at two positions; `keys` are all as they are stored."""
        assert seen.other_shift is not None
        head_dim, selection = query.shape[-1], self._selected_by_heads(layer)
        chosen = chosen_components(selection, self._encoding.pairs, head_dim, query.device, query.dtype)
        other_query = query[:, :, seen.other_place : seen.other_place + 1]
        other_key = rotate(keys[:, :, seen.slots], seen.other_shift)
        key, value = doubled_keys(key, other_key, value)
        own = doubled_query(query[:, :, seen.places], other_query, chosen)
        output, lse = attend(own, key, value, scoring, causal=False)
        return Partial(output[..., :head_dim], lse)

    def _write_recent(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the new key, at its index, and value where those that leave the band were; fill the buffer if need be."""
        width = self._recent_len
        if self._rebuilds:
            seen = next(seen for seen in self._bands if seen.is_recent)
            assert seen.shift is not None
            keys, values = self._cache.seen(layer, self._rows, self._past + 1)
            moved = rotate(keys[:, :, seen.start : seen.end], seen.shift)
            self._cache.write_recent(layer, self._rows, width, seen.start, moved, values[:, :, seen.start : seen.end])
        self._cache.write_recent(layer, self._rows, width, self._past, key, value)
