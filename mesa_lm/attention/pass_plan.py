"""Which passes a call takes: the one place that decides it.

Every row of the batch is treated by its own length; padding is skipped, not computed.
"""

from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from mesa_lm.attention.band_pass import BandPass
from mesa_lm.attention.cache import WovenCache
from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.attention.call import ForwardCall, WantedLogits
from mesa_lm.attention.chunk_pass import MiddleChunksPass, chunk_positions
from mesa_lm.attention.chunk_store import ChunkStore, Shared, split_by_store
from mesa_lm.attention.decode_pass import DecodePass
from mesa_lm.attention.dense_pass import DensePass
from mesa_lm.attention.layer_groups import LayerGroup, Layers
from mesa_lm.attention.model_pass import GroupPass, ModelPass, NewTokens
from mesa_lm.attention.ranks import Ranks
from mesa_lm.attention.recall_pass import RecallPass
from mesa_lm.attention.window import LayerWindow
from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Block, Extent, Kept, Layout
from mesa_lm.methods.recall import RecallMethod
from mesa_lm.methods.weaves import Placement

# Tokens that go through the model in one prefill pass: enough to keep it busy, few enough for little memory.
PASS_TOKENS = 8192


class PlannedPass(NamedTuple):
    """A pass that is to be run now.

    Attributes:
        model_pass: What the model's attention layers call.
        rows: (rows of the pass,) batch row of each.
        columns: (rows of the pass, len) input columns of its tokens.
        is_whole: It runs all tokens of the call as they are given.
    """

    model_pass: ModelPass
    rows: Tensor
    columns: Tensor
    is_whole: bool = False


class PassPlan:
    """The passes of one call of an extrapolated model's forward.

    Attributes:
        cache: What they fill.
        ran_alone: (batch, new columns) which columns this process has run and those that share the prompts have not.
        is_scattered: Whether logits are wanted of columns that one process each runs.
    """

    def __init__(
        self,
        call: ForwardCall,
        wanted: WantedLogits,
        method: Method,
        layers: Layers,
        store: ChunkStore | None = None,
        ranks: Ranks | None = None,
        is_offloaded: bool = False,
    ) -> None:
        """Look at the call; nothing is computed yet.

        Args:
            call: The call.
            wanted: The logits that it asks for.
            method: Bound to the model.
            layers: The model's layers.
            store: Of middle chunks that prompts may share; None: none.
            ranks: The processes that share the prompts; None: there are none.
            is_offloaded: Whether a new cache lies in the host's memory.

        Raises:
            ModelError: The mask, the positions or the cache are of a kind that cannot be followed.
        """
        self._columns = call.columns()
        self.cache = _cache_of(call, method, layers, ranks, is_offloaded)
        self._ranks, self.is_scattered = ranks, False
        self.ran_alone = torch.zeros(call.batch, call.new, dtype=torch.bool)
        self._call, self._wanted, self._method, self._layers = call, wanted, method, layers
        self._store = store if call.input_ids is not None and layers.share_chunks else None
        # With bands, tokens see the same in one pass and in several.
        self._longest_piece = PASS_TOKENS if method.has_bands else method.longest_append or call.new

    def passes(self) -> Iterator[PlannedPass]:
        """Yield each pass; it must have been run and finished before the next one is asked for."""
        kinds = [self._kind(row, len(own)) for row, own in enumerate(self._columns)]
        for kind in sorted(set(kinds)):
            is_prompt, count, pieces = kind
            if count == 0:
                continue
            alike = [row for row, other in enumerate(kinds) if other == kind]
            passes_of = self._prefill if is_prompt else self._append
            most_rows = max(1, PASS_TOKENS // min(count, max(pieces, default=self._longest_piece)))
            for start in range(0, len(alike), most_rows):
                rows = alike[start : start + most_rows]
                yield from passes_of(rows, torch.stack([self._columns[row] for row in rows]))
        self.cache.columns = self._call.past + self._call.new

    def _kind(self, row: int, count: int) -> tuple[bool, int, tuple[int, ...]]:
        """Return what rows that are run together have in common: being prompts, new tokens, the method's own pieces."""
        cached = self.cache.rows[row].length
        return cached == 0, count, tuple(self._method.pieces(cached, count) or ()) if count else ()

    def _prefill(self, rows: list[int], columns: Tensor) -> Iterator[PlannedPass]:
        """Yield the passes of prompts of one length, by chunks if the method cuts them."""
        prompt_len = columns.shape[1]
        for row in rows:
            self.cache.rows[row].prompt_len = self.cache.rows[row].room = prompt_len
        totals = [prompt_len] * len(rows)
        layout = self._method.layout(prompt_len)
        if layout is None:
            longest = PASS_TOKENS if self._method.has_bands else prompt_len
            for part in columns.split(self._method.pieces(0, prompt_len) or longest, dim=1):
                yield self._appending(rows, part, totals)
            return
        last = prompt_len - layout.last_start
        weave = self._method.next_weave(prompt_len, last, prompt_len, None)
        own = self._own_chunks(rows, columns, layout)
        yield self._appending(rows, columns[:, : layout.first], totals)
        if self._store is not None:
            self._store.start_prompt()
        for block in layout.blocks(PASS_TOKENS // len(rows), own):
            yield from self._middle_chunks(rows, columns, layout, block, weave)
        for row in rows:
            self.cache.rows[row].length = layout.last_start  # also where others ran the chunks before it
        if weave is not None:
            for row in rows:
                self.cache.reweave(row, weave, self._layers, end=layout.first)
        yield self._appending(rows, columns[:, layout.last_start :], totals)

    def _own_chunks(self, rows: list[int], columns: Tensor, layout: Layout) -> range | None:
        """Return which middle chunks of some prompts this process runs; None: all."""
        if self._ranks is None:
            return None
        self.is_scattered |= bool((self._wanted.slot[columns[:, layout.first : layout.last_start]] >= 0).any())
        own = self._ranks.own(layout.chunks)
        for row in rows:
            self.cache.rows[row].room = layout.first + len(own) * layout.width + columns.shape[1] - layout.last_start
        return own

    def _append(self, rows: list[int], columns: Tensor) -> Iterator[PlannedPass]:
        """Yield the passes of new tokens of rows that have a cache, moving its keys where the method says so."""
        for row in rows:
            dropped = self._method.evicted(self.cache.rows[row].length, columns.shape[1])
            if dropped:
                self.cache.evict(row, dropped, self._layers)
        totals = [self.cache.rows[row].length + columns.shape[1] for row in rows]
        cached = self.cache.rows[rows[0]].length
        for part in columns.split(self._method.pieces(cached, columns.shape[1]) or self._longest_piece, dim=1):
            count = part.shape[1]
            for row in rows:
                state = self.cache.rows[row]
                weave = self._method.next_weave(state.length + count, count, state.prompt_len, state.weave)
                if weave is not None:
                    self.cache.reweave(row, weave, self._layers)
            yield self._appending(rows, part, totals, croppable=columns.shape[1])

    def _appending(self, rows: list[int], columns: Tensor, totals: list[int], croppable: int = 0) -> PlannedPass:
        """Return the pass that appends tokens to rows of inputs of `totals` tokens.

        What is appended to a cache, `croppable` tokens in this call, may be taken back from it until the next call.
        """
        for row in rows:
            self.cache.plan_dropping(row, columns.shape[1], croppable)
        tokens = NewTokens(self.cache, rows, columns.shape[1], totals)
        if isinstance(self._method, RecallMethod) and self._method.offloaded:
            for row in rows:
                self.cache.move_away(row, self._method.away(self.cache.rows[row].length), self._layers)

        def pass_of(group: LayerGroup) -> GroupPass:
            if group.window is not None:
                method: Method = LayerWindow(window=group.window)
            else:
                method = self._method
            if isinstance(method, RecallMethod):
                return RecallPass(tokens, method, group.encoding)
            alone = tokens.count == 1 and not method.is_noisy
            kind = DecodePass if alone else BandPass if method.has_bands else DensePass
            return kind(tokens, method, group.encoding)

        # As many columns as the call has: then none of them is padding.
        is_whole = tokens.count == self._call.new and len(rows) == self._call.batch
        return PlannedPass(ModelPass(self._layers, tokens, pass_of), torch.tensor(rows), columns, is_whole)

    def _middle_chunks(
        self, rows: list[int], columns: Tensor, layout: Layout, block: Block, weave: Placement | None
    ) -> Iterator[PlannedPass]:
        """Yield the passes of some middle chunks but for those that the store holds, which are taken from it."""
        store, prompt_len = self._store, columns.shape[1]
        # Ordered by prompt, then by chunk.
        owners = torch.tensor(rows).repeat_interleave(block.chunks)
        chunks = columns[:, block.start : block.start + block.width * block.chunks].reshape(-1, block.width)
        names: list[bytes] = []
        parts: Iterable[Shared] = [Shared(block, list(range(len(chunks))), [])]
        if store is not None:
            anchors = columns[:, : layout.seen].repeat_interleave(block.chunks, 0)
            names = self._chunk_names(store, owners, anchors, chunks, chunk_positions(layout, block)[:, 0].tolist())
            parts = split_by_store(store, names, block, unwanted=(self._wanted.slot[chunks] < 0).all(-1).tolist())
        for part in parts:
            tokens = NewTokens(self.cache, rows, part.block.width * part.block.chunks, [prompt_len] * len(rows))
            self.ran_alone[owners[part.places, None], chunks[part.places]] = self._ranks is not None
            middle = MiddleChunksPass(
                self._layers, tokens, self._method, layout, part.block, weave, keeps_states=store is not None
            )
            if part.states:
                middle.restore(part.states)
                continue
            yield PlannedPass(middle, owners[part.places], chunks[part.places])
            if store is not None:
                for place, states in zip(part.places, middle.states(), strict=True):
                    store.keep(names[place], states)

    def _chunk_names(
        self, store: ChunkStore, owners: Tensor, anchors: Tensor, chunks: Tensor, positions: list[int]
    ) -> list[bytes]:
        """Return what a store finds each chunk by, from the columns of its prompt's anchor and its own."""
        ids = self._call.tokens
        return [
            store.name(ids[row, anchor], ids[row, own], position)
            for row, anchor, own, position in zip(owners.tolist(), anchors, chunks, cycle(positions), strict=False)
        ]


def _cache_of(call: ForwardCall, method: Method, layers: Layers, ranks: Ranks | None, is_offloaded: bool) -> WovenCache:
    """Return the cache that a call goes on with: the one it brings, made ours if the untouched model filled it."""
    kept = _kept(method, layers)
    if call.past == 0:
        return WovenCache(call.batch, ranks, is_offloaded, kept)
    held = woven_layer(call.cache)
    if held is not None:
        if len(held.woven.rows) != call.batch:
            raise ModelError(f"the cache holds {len(held.woven.rows)} rows, the input has {call.batch}")
        if held.woven.ranks is not ranks:
            raise ModelError("the cache was filled by other processes than share this prompt; begin with a new cache")
        return held.woven
    assert call.cache is not None
    cached = call.cached_columns()
    longest = max(map(len, cached))
    if method.remembers or not method.is_untouched(longest, cached=False):
        raise ModelError(
            f"the cache holds {longest} tokens that were not run under method {method.name!r}, which does not leave "
            "so many alone; begin with a new cache"
        )
    cache = WovenCache.from_rotated(call.cache, cached, call.cached_starts(), layers, ranks, is_offloaded, kept)
    if method.has_bands:
        for batch, row in enumerate(cache.rows):
            index, extent = torch.arange(row.length), Extent(row.prompt_len, row.length)

            def distance_of(pairs: int, index: Tensor = index, extent: Extent = extent) -> Tensor:
                stored_at = method.stored_at(index, extent._replace(pairs=pairs))
                return stored_at - (index if stored_at.ndim == 1 else index[:, None])

            cache.move(batch, distance_of, layers)
    return cache


def _kept(method: Method, layers: Layers) -> Kept | None:
    """Return which tokens later ones may see in some layer; None: all."""
    kept = method.kept
    if kept is None:
        return None
    windows = [group.window - 1 for group in layers.groups if group.window is not None]
    return Kept(kept.first, max(kept.last, *windows, 0))
