"""The pass of a method with bands: several new tokens at the end of rows."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mesa_lm.attention.bands import Sum, attend_part, merge_rounded
from mesa_lm.attention.encoding import Angles, Encoding, multiply, rotate
from mesa_lm.attention.kernels import Partial, Scoring, additive_mask
from mesa_lm.attention.model_pass import NewTokens
from mesa_lm.attention.noise import attend_noisily
from mesa_lm.attention.pair_selection import chosen_components, doubled_keys, doubled_query
from mesa_lm.attention.parts import Part, parts_of
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent, Noise


class BandPass:
    """New tokens at the end of rows that see what their method's bands say.

    Keys are stored once, at `Method.stored_at`; a band that scores them elsewhere moves those it needs. Angles are
    computed by the first layer and kept for the others.
    """

    positions: Tensor | None = None  # takes queries and keys as the layer has them, without positions

    def __init__(self, tokens: NewTokens, method: Method, encoding: Encoding) -> None:
        """Prepare the pass.

        Args:
            tokens: What is appended.
            method: Bound to the model; it has bands.
            encoding: The layers' position encoding.
        """
        extents = tokens.extents()
        self._runs = [RowRun(tokens, run, extents[run.start], method, encoding) for run in tokens.neighbours(extents)]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `GroupPass`."""
        outputs = [run.attend(layer, query[run.part], key[run.part], value[run.part], scoring) for run in self._runs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class PlannedBand(NamedTuple):
    """A band with what all layers share.

    Attributes:
        queries: Which of the new tokens it has.
        angles: Of their positions; None: those of `_RowRun._shared_angles`.
        slots: Where its keys lie in the cache.
        shift: By how much all of them are moved to where it scores them; None where they are not.
        stepped: Keys are taken as the band before has left them, but for these, which move by `_RowRun._step`; None:
            all are taken as they are stored.
        parts: What its queries see, keys counted from its first one.
        noise: As in `Band`.
        others: Angles of its queries, and of moving all its keys, for pairs that a head does not select.
    """

    queries: slice
    angles: Angles | None
    slots: slice
    shift: Angles | None
    stepped: slice | None
    parts: list[Part]
    noise: Noise | None
    others: tuple[Angles, Angles] | None


class RowRun:
    """Rows of a pass that are neighbours in the cache and hold equally many tokens of equally long inputs."""

    def __init__(self, tokens: NewTokens, part: slice, extent: Extent, method: Method, encoding: Encoding) -> None:
        first, extent = tokens.rows[part.start], extent._replace(pairs=encoding.pairs)
        self.part = part
        self._cache, self._cached = tokens.cache, slice(first, first + part.stop - part.start)
        self._past, self._new = tokens.cache.rows[first].length, tokens.count
        self._encoding, self._spared = encoding.for_input(method, extent), encoding.spared
        self._selected_by_heads = method.selected_by_heads
        index = torch.arange(self._past + self._new)
        # Where angles follow the input's length, keys are stored without any.
        self._stored_at = method.stored_at(index, extent) * (not encoding.follows_length)
        new = index[self._past :]
        self._key_angles = self._encoding.angles(self._stored_at[self._past :][None])
        self._key_scale = self._column(method.key_scale(new, extent))
        self._query_scale = self._column(method.query_scale(new, extent))
        bands = method.bands(new, extent) or ()
        self._shared_angles = self._angles_of_some(bands)
        self._step: int | None = None  # by which keys move from one band to the next
        self._bands = list(self._planned(bands))
        self._step_angles = None if self._step is None else self._encoding.shift(torch.tensor([[self._step]]))
        self._rounds_merge = method.rounds_merge
        self._masks: dict[Part, Tensor] = {}

    def _planned(self, bands: tuple[Band, ...]) -> Iterator[PlannedBand]:
        """Yield the bands; of bands for some queries each, few keys move from one to the next."""
        before = slice(0, 0)
        places = self._stored_at[before]
        for band in bands:
            parts = parts_of(band.start, band.end, for_cpu=self._encoding.device.type == "cpu")
            if not parts:
                continue
            # Bands of some queries, as Stair PE has them, all have the same range.
            some = band.queries is not None
            keys = slice(0, len(self._stored_at)) if some else slice(int(band.start.min()), int(band.end.max()))
            wanted = band.key_position(torch.arange(keys.start, keys.stop)).double()
            distance = wanted - self._stored_at[keys].double()
            stepped = self._stepped(wanted, places, distance) if some and keys == before else None
            is_moved = stepped is None and bool((distance != 0).any())
            queries = slice(None) if band.queries is None else evenly_apart(band.queries)
            assert queries is not None, "queries of a band are at equal distances"
            shift = self._encoding.interpolated_shift if band.interpolated else self._encoding.shift
            yield PlannedBand(
                queries,
                None if some else self._encoding.angles(band.query_position[None]),
                self._slots(keys),
                shift(distance[None]) if is_moved else None,
                stepped,
                [part._replace(key=part.key - keys.start) for part in parts],
                band.noise,
                None if band.others is None else self._other_angles(band.others, keys),
            )
            goes_on = some and (is_moved or stepped is not None)
            before, places = (keys if goes_on else slice(0, 0)), wanted

    def _stepped(self, wanted: Tensor, places: Tensor, distance: Tensor) -> slice | None:
        """Return which keys go to other places than the band before left them in, if all make the same step.

        Args:
            wanted: (keys,) where the band scores them.
            places: (keys,) where the band before has left them.
            distance: (keys,) how far they then are from where they are stored.
        """
        changed = evenly_apart((wanted != places).nonzero()[:, 0])
        if changed is None:
            return None
        steps = distance[changed].unique().tolist()
        if len(steps) > 1 or self._step not in (None, int(steps[0])) or steps[0] != int(steps[0]):
            return None
        self._step = int(steps[0])
        return changed

    def _angles_of_some(self, bands: tuple[Band, ...]) -> Angles | None:
        """Return the angles of all queries where bands have some of them each, none of them two."""
        if all(band.queries is None for band in bands):
            return None
        positions = torch.zeros(1, self._new, dtype=torch.float64)
        for band in bands:
            if band.queries is not None:
                positions[0, band.queries] = band.query_position.double()
        return self._encoding.angles(positions)

    def _slots(self, keys: slice) -> slice:
        """Return where keys lie in the cache."""
        start = self._cache.slot(self._cached.start, keys.start)
        return slice(start, start + keys.stop - keys.start)

    def _other_angles(self, others: tuple[Tensor, Callable[[Tensor], Tensor]], keys: slice) -> tuple[Angles, Angles]:
        query_position, key_position = others
        distance = key_position(torch.arange(keys.start, keys.stop)) - self._stored_at[keys]
        return self._encoding.angles(query_position[None]), self._encoding.shift(distance[None])

    def _column(self, scale: Tensor | None) -> Tensor | None:
        if scale is None or bool((scale == 1).all()):
            return None
        return scale.to(self._encoding.device, self._encoding.dtype)[:, None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """As `BandPass.attend`, for these rows."""
        sums, head_dim = list[Sum](), query.shape[-1]
        for band, own, keys, values in self.scored(layer, query, key, value):
            if band.noise is not None:
                return attend_noisily(own, keys, values, scoring, band.noise, layer)
            if not sums or self._rounds_merge:
                sums.append(Sum(query))
            for part in band.parts:
                output, lse = attend_part(part, own, keys, values, scoring, self.mask(part, query))
                partial = Partial(output[..., :head_dim], lse)
                if len(self._bands) == len(band.parts) == 1 and part.problems == 1:
                    return partial.output
                sums[-1].add(partial, part, band.queries)
        return merge_rounded(sums) if self._rounds_merge else sums[0].output()

    def scored(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor
    ) -> Iterator[tuple[PlannedBand, Tensor, Tensor, Tensor]]:
        """Store keys and values, and yield each band with its queries, keys and values where it scores them."""
        stored = rotate(key, self._key_angles)
        if self._key_scale is not None:
            stored = multiply(stored, self._key_scale, self._spared)
        all_keys, all_values = self._store(layer, stored, value)
        if self._query_scale is not None:
            query = multiply(query, self._query_scale, self._spared)
        keys = all_keys
        stepped = None if self._step_angles is None else rotate(all_keys, self._step_angles)
        some = None if self._shared_angles is None else rotate(query, self._shared_angles)
        for band in self._bands:
            if band.stepped is not None and stepped is not None:
                keys[:, :, band.stepped] = stepped[:, :, band.stepped]
            else:
                keys = all_keys[:, :, band.slots]
                keys = keys if band.shift is None else rotate(keys, band.shift)
            values = all_values[:, :, band.slots]
            if band.angles is None:
                assert some is not None
                own = some[:, :, band.queries].contiguous()  # kernels read each many times
            else:
                own = rotate(query[:, :, band.queries], band.angles)
            if band.others is not None:
                selection, head_dim = self._selected_by_heads(layer), query.shape[-1]
                chosen = chosen_components(selection, self._encoding.pairs, head_dim, query.device, query.dtype)
                own = doubled_query(own, rotate(query, band.others[0]), chosen)
                keys, values = doubled_keys(keys, rotate(all_keys[:, :, band.slots], band.others[1]), values)
            yield band, own, keys, values

    def _store(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys, where they are cached, and values of the new tokens; return those of all tokens by slot."""
        return self._cache.append(layer, self._cached, key, value)

    def mask(self, part: Part, like: Tensor) -> Tensor | None:
        """Return a slanted part's mask, made once for all layers."""
        if part.shape != "slanted":
            return None
        one = part._replace(query=0, key=0, problems=1, query_step=0, key_step=0)
        if one not in self._masks:
            self._masks[one] = additive_mask(part.visible(), like)
        return self._masks[one]


def evenly_apart(index: Tensor) -> slice | None:
    """Return increasing indices as a slice; None if they are not at equal distances."""
    if len(index) == 0:
        return None
    steps = index.diff().unique().tolist() or [1]
    return slice(int(index[0]), int(index[-1]) + 1, steps[0]) if len(steps) == 1 else None
