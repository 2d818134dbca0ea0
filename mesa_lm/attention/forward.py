"""One forward call under a method: which passes it takes, and how their logits become the call's result.

Every row of the batch is treated by its own length; padding is skipped, not computed.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mesa_lm.attention.cache import WovenCache
from mesa_lm.attention.chunk_store import ChunkStore, split_by_store
from mesa_lm.attention.dense_pass import MiddleChunks
from mesa_lm.attention.layer_groups import Group, Layers
from mesa_lm.attention.model_pass import Part, Pass, WindowedChunks, appending
from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Block, Extent, Layout
from mesa_lm.methods.weaves import Placement

# Tokens that go through the model in one prefill pass: enough to keep it busy, few enough for little memory.
PASS_TOKENS = 8192

RunPass = Callable[[Pass, Tensor, dict[str, Tensor], int | Tensor], Tensor]


class Forward:
    """The work of one call of an extrapolated model's forward.

    Attributes:
        longest: Most tokens that any row has after the call, cached ones included.
    """

    def __init__(
        self,
        method: Method,
        layers: Layers,
        run_pass: RunPass,
        *,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        use_cache: bool,
        logits_to_keep: int | Tensor,
        store: ChunkStore | None = None,
    ) -> None:
        """Look at the call's arguments; nothing is computed yet.

        Args:
            method: Bound to the model.
            layers: The model's layers.
            run_pass: Runs the model's own forward for a pass: the pass, the (rows, len) input columns of its tokens,
                the tokens as keyword argument and the positions whose logits are wanted (0 for all, else a (rows,
                len) mask); returns logits.
            input_ids: (batch, new) or None.
            inputs_embeds: (batch, new, hidden) or None.
            attention_mask: (batch, cached + new), 0 for padding; None for no padding.
            position_ids: (batch or 1, new) or None; only checked.
            cache: Filled by earlier calls, or empty, or None.
            use_cache: Whether the result carries a cache.
            logits_to_keep: As in transformers: number of last columns (0: all) or a 1-D tensor of columns.
            store: Of middle chunks that prompts may share; None: none.

        Raises:
            ModelError: Neither or both of input_ids and inputs_embeds are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("give exactly one of input_ids and inputs_embeds")
        self._name = "inputs_embeds" if input_ids is None else "input_ids"
        tokens = inputs_embeds if input_ids is None else input_ids
        assert tokens is not None
        self._method, self._layers, self._run_pass, self._tokens = method, layers, run_pass, tokens
        self._cache, self._use_cache, self._logits_to_keep = cache, use_cache, logits_to_keep
        self._position_ids, self._store = position_ids, store
        self._batch, self._new = tokens.shape[:2]
        self._past = cache.get_seq_length() if cache is not None else 0
        self._mask = attention_mask
        self._logits: Tensor | None = None
        self.longest = self._past + self._new

    def is_untouched(self) -> bool:
        """Tell whether the untouched model gives the call's result: every row is short enough for that."""
        if isinstance(self._cache, WovenCache):
            return False
        if self._method.is_untouched(self.longest, cached=self._past > 0):
            return True
        if self._mask is not None and self._mask.ndim == 2:
            self.longest = int(self._mask.sum(-1).max())
        return self._method.is_untouched(self.longest, cached=self._past > 0)

    def run(self) -> CausalLMOutputWithPast:
        """Compute logits and cache.

        Raises:
            ModelError: The mask, the positions or the cache are of a kind that cannot be followed.
        """
        cached, columns = self._columns()
        self._check_positions(columns)
        cache = self._take_cache(cached)
        kept = self._kept_columns()
        self._slot = torch.full((self._new,), -1)  # column -> place among the kept ones
        self._slot[kept.unique()] = torch.arange(len(kept.unique()))
        counts = [len(indices) for indices in columns]
        for is_prompt, count in sorted({(cache.rows[i].length == 0, counts[i]) for i in range(self._batch)}):
            rows = [i for i in range(self._batch) if (cache.rows[i].length == 0, counts[i]) == (is_prompt, count)]
            if count == 0:
                continue
            step = self._append if not is_prompt else self._prefill
            for group in _split(rows, max(1, PASS_TOKENS // min(count, self._longest_piece()))):
                step(cache, group, torch.stack([columns[row] for row in group]))
        if self._logits is None:
            raise ModelError("attention_mask hides every new token")
        if not isinstance(self._logits_to_keep, int):
            self._logits = self._logits[:, self._slot[kept].to(self._logits.device)]
        cache.columns = self._past + self._new
        return CausalLMOutputWithPast(logits=self._logits, past_key_values=cache if self._use_cache else None)

    def _prefill(self, cache: WovenCache, rows: list[int], columns: Tensor) -> None:
        """Run prompts of one length, by chunks if the method cuts them."""
        prompt_len = columns.shape[1]
        for row in rows:
            cache.rows[row].prompt_len = prompt_len
        totals = [prompt_len] * len(rows)
        layout = self._method.layout(prompt_len)
        if layout is None:
            for part in columns.split(self._longest_piece() if self._method.has_bands else prompt_len, dim=1):
                self._run(self._appending(cache, rows, part.shape[1], totals), rows, part)
            return
        last = prompt_len - layout.last_start
        weave = self._method.next_weave(prompt_len, last, prompt_len, None)
        first = self._appending(cache, rows, layout.first, totals)
        self._run(first, rows, columns[:, : layout.first])
        self._prefill_middle(cache, rows, columns, layout, weave)
        if weave is not None:
            for row in rows:
                cache.reweave(row, weave, self._layers, end=layout.first)
        end = self._appending(cache, rows, last, totals)
        self._run(end, rows, columns[:, layout.last_start :])

    def _append(self, cache: WovenCache, rows: list[int], columns: Tensor) -> None:
        """Run new tokens of rows that have a cache, moving its keys where the method says so."""
        for row in rows:
            dropped = self._method.evicted(cache.rows[row].length, columns.shape[1])
            if dropped:
                cache.evict(row, dropped, self._layers)
        totals = [cache.rows[row].length + columns.shape[1] for row in rows]
        for part in columns.split(self._longest_piece(), dim=1):
            count = part.shape[1]
            for row in rows:
                state = cache.rows[row]
                weave = self._method.next_weave(state.length + count, count, state.prompt_len, state.weave)
                if weave is not None:
                    cache.reweave(row, weave, self._layers)
            self._run(self._appending(cache, rows, count, totals), rows, part)

    def _appending(self, cache: WovenCache, rows: list[int], count: int, totals: list[int]) -> Pass:
        """Return the pass that appends `count` tokens to each row of an input of `totals` tokens."""
        return appending(cache, rows, count, self._method, self._layers, totals)

    def _prefill_middle(
        self, cache: WovenCache, rows: list[int], columns: Tensor, layout: Layout, weave: Placement | None
    ) -> None:
        """Run the middle chunks of prompts of one length, or take them from the store."""
        store = self._store if self._name == "input_ids" and self._layers.share_chunks else None
        if store is not None:
            store.start_prompt()
        for block in layout.blocks(PASS_TOKENS // len(rows)):
            part = columns[:, block.start : block.start + block.width * block.chunks].reshape(-1, block.width)
            owners = [row for row in rows for _ in range(block.chunks)]
            if store is None:
                self._run(self._middle(cache, rows, layout.first, block, weave), owners, part)
                continue
            names = [
                store.name(self._tokens[row, columns[rows.index(row), : layout.first]], self._tokens[row, chunk])
                for row, chunk in zip(owners, part, strict=True)
            ]
            for shared in split_by_store(store, names, block, unwanted=(self._slot[part] < 0).all(-1).tolist()):
                middle = self._middle(cache, rows, layout.first, shared.block, weave, keeps=True)
                if shared.states:
                    middle.restore(shared.states)
                    middle.finish()
                    continue
                self._run(middle, [owners[i] for i in shared.places], part[shared.places])
                for i, states in zip(shared.places, middle.seen(), strict=True):
                    store.keep(names[i], states)

    def _middle(
        self,
        cache: WovenCache,
        rows: list[int],
        first: int,
        block: Block,
        weave: Placement | None,
        keeps: bool = False,
    ) -> Pass:
        """Return the pass of some middle chunks."""

        def part(group: Group) -> Part:
            if group.window is not None:
                return WindowedChunks(cache, rows, block, group.window, group.encoding)
            return MiddleChunks(cache, rows, first, block, weave, group.encoding, keeps)

        return Pass(self._layers, part)

    def _run(self, current: Pass, rows: list[int], columns: Tensor) -> None:
        """Run one pass and put its wanted logits into the result.

        Args:
            current: The pass.
            rows: Batch row of each row of the pass.
            columns: (rows of the pass, len) input columns of its tokens.
        """
        place = torch.tensor(rows)
        device = self._tokens.device
        tokens = self._tokens[place[:, None].to(device), columns.to(device)]
        slot = self._slot[columns]
        wanted = slot >= 0
        everything = bool(wanted.all())
        logits = self._run_pass(current, columns, {self._name: tokens}, 0 if everything else wanted)
        current.finish()
        if self._logits is None:
            self._logits = logits.new_zeros(self._batch, int(self._slot.max()) + 1, logits.shape[-1])
        if bool(wanted.any()):
            target = place[:, None].expand_as(columns)[wanted].to(logits.device), slot[wanted].to(logits.device)
            self._logits[target] = logits.flatten(0, -2)

    def _longest_piece(self) -> int:
        if self._method.has_bands:
            return PASS_TOKENS  # they see the same in one pass and in several
        return self._method.longest_append or self._new

    def _columns(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each row the columns of its cached and of its new tokens, counted from the first new one."""
        total = self._past + self._new
        if self._mask is None:
            return [torch.arange(self._past)] * self._batch, [torch.arange(self._new)] * self._batch
        if self._mask.shape != (self._batch, total):
            raise ModelError(
                f"attention_mask must be 2-D and cover cached and new tokens, ({self._batch}, {total}), beyond the "
                f"training length; found {tuple(self._mask.shape)}"
            )
        mask = self._mask.bool().cpu()
        return [row[: self._past].nonzero()[:, 0] for row in mask], [row[self._past :].nonzero()[:, 0] for row in mask]

    def _check_positions(self, columns: list[Tensor]) -> None:
        """Refuse position_ids that are not consecutive over a row's tokens; where they start makes no difference."""
        if self._position_ids is None:
            return
        positions = self._position_ids.cpu().expand(self._batch, -1)
        for row, indices in enumerate(columns):
            if bool((positions[row, indices].diff() != 1).any()):
                raise ModelError(f"position_ids must count a row's tokens one by one; row {row} does not")

    def _take_cache(self, cached: list[Tensor]) -> WovenCache:
        if isinstance(self._cache, WovenCache):
            if len(self._cache.rows) != self._batch:
                raise ModelError(f"the cache holds {len(self._cache.rows)} rows, the input has {self._batch}")
            return self._cache
        if self._cache is None or self._past == 0:
            return WovenCache(self._batch)
        cache = WovenCache.from_rotated(self._cache, cached, self._layers)
        if self._method.has_bands:
            for batch, row in enumerate(cache.rows):
                index = torch.arange(row.length)
                stored_at = self._method.stored_at(index, Extent(row.prompt_len, row.length))
                cache.move(batch, stored_at - index, self._layers)
        return cache

    def _kept_columns(self) -> Tensor:
        """Return the columns whose logits are wanted, in the order asked for."""
        if isinstance(self._logits_to_keep, int):
            return torch.arange(self._new)[-self._logits_to_keep :]
        if self._logits_to_keep.ndim != 1:
            raise ModelError(
                "logits_to_keep must be an integer or a 1-D tensor beyond the training length, found "
                f"{self._logits_to_keep.ndim} dimensions"
            )
        return torch.arange(self._new)[self._logits_to_keep.cpu()]


def _split(rows: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
