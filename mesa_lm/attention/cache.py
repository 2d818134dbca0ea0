"""The key-value cache: buffers that grow geometrically, keys stored at the positions at which they are scored."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mesa_lm.attention.encoding import rotate_unrounded
from mesa_lm.attention.layer_groups import Layers
from mesa_lm.errors import ModelError, UsageError
from mesa_lm.methods.geometry import Kept
from mesa_lm.methods.weaves import Placement

# Tokens that are kept beyond those that later ones see: so many may be cropped, and they are dropped by so many.
SPARE_TOKENS = 256


@dataclass(slots=True)
class CachedRow:
    """What one sequence of the batch holds in the cache.

    Attributes:
        length: Cached tokens.
        prompt_len: Length of its prompt in tokens.
        weave: Positions at which its keys are stored; None is linear.
        recent_len: Length up to which the buffers of recent keys follow it; -1: they do not.
        dropped: Tokens, after the first ones of `WovenCache.kept`, that are not held any more.
        dropping: How many more are dropped by the pass that runs.
    """

    length: int = 0
    prompt_len: int = 0
    weave: Placement | None = None
    recent_len: int = -1
    dropped: int = 0
    dropping: int = 0


class WovenCache:
    """Keys and values of a batch of sequences of any lengths, without padding.

    Token i of a row lies in slot i. Where no later token sees more than the first and the last ones, those between are
    dropped and the last ones close up, see `slot`.

    transformers meets it as the content of a cache of its own, see `cache_layer`.

    Attributes:
        rows: State of each sequence.
        kept: Which tokens later ones may see; None: all.
        columns: Padded input columns consumed so far, which is what `generate` counts.
        keys: Per layer (batch, num_kv_heads, capacity, head_dim), rotated to the position given by the row's weave.
        values: Per layer, like keys.
        recent_keys: Per layer the last keys at their true positions, where decoding needs them beside those that are
            stored; token i lies in slot i modulo the number of slots.
        recent_values: Per layer, like recent_keys.
    """

    def __init__(self, batch_size: int, kept: Kept | None = None) -> None:
        self.kept = kept
        self.rows = [CachedRow() for _ in range(batch_size)]
        self.columns = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.recent_keys: dict[int, Tensor] = {}
        self.recent_values: dict[int, Tensor] = {}

    @classmethod
    def from_rotated(
        cls, cache: Cache, columns: list[Tensor], starts: list[int], layers: Layers, kept: Kept | None = None
    ) -> "WovenCache":
        """Take over a cache that the untouched model has filled at consecutive positions.

        Args:
            cache: Its keys are (batch, num_kv_heads, padded length, head_dim).
            columns: For every row the indices of its tokens among the padded ones.
            starts: For every row the position of its first token.
            layers: The model's layers.
            kept: Which tokens later ones may see; None: all.

        Raises:
            ModelError: Its layers do not hold every token that will be seen, for example those of a quantised cache.
        """
        woven = cls(len(columns), kept)
        woven.columns = int(cache.get_seq_length())
        for row, own in zip(woven.rows, columns, strict=True):
            row.length = row.prompt_len = len(own)
        longest = max(row.length for row in woven.rows)
        for index, layer in enumerate(cache.layers):
            # Layers of a static cache have room for more.
            keys, values = (
                None if held is None else held[:, :, : woven.columns]
                for held in (getattr(layer, name, None) for name in ("keys", "values"))
            )
            window = layers.of(index).window
            # A sliding layer may have dropped what none of its later queries sees.
            dropped = 0 if keys is None else woven.columns - keys.shape[2]
            unseen = [0 if window is None else max(0, len(own) - window + 1) for own in columns]
            needed = min(
                (int(own[first]) for own, first in zip(columns, unseen, strict=True) if first < len(own)), default=0
            )
            if keys is None or values is None or not 0 <= dropped <= needed:
                raise ModelError(f"a {type(layer).__name__} of layer {index} does not hold every token's keys")
            for batch, own in enumerate(columns):
                slot = torch.arange(unseen[batch], len(own))
                held = (own[slot] - dropped).to(keys.device)
                encoding, start = layers.of(index).encoding, starts[batch]
                key, value = encoding.enter_cached(
                    keys[batch : batch + 1].index_select(2, held),
                    values[batch : batch + 1].index_select(2, held),
                    slot + start,
                )
                if start and not encoding.follows_length:
                    key = rotate_unrounded(key, encoding.shift(torch.full((1, len(slot)), -start)))
                woven._reserve(index, longest, key)
                woven.keys[index][batch, :, unseen[batch] : len(own)] = key[0]
                woven.values[index][batch, :, unseen[batch] : len(own)] = value[0]
        return woven

    def plan_dropping(self, batch: int, count: int, croppable: int) -> None:
        """Decide which tokens of a row the next pass drops; it does so layer by layer, see `append`.

        Args:
            batch: Row.
            count: Tokens that the pass appends.
            croppable: How many of the last tokens a caller may want to crop afterwards.

        Raises:
            UsageError: The pass before was interrupted, with tokens dropped in some layers only.
        """
        row = self.rows[batch]
        if row.dropping:
            raise UsageError("the call before was interrupted while it changed this cache; begin with a new cache")
        if self.kept is None:
            return
        length, held_from = row.length + count, self.kept.first + row.dropped
        keeps = self.kept.last + max(croppable, SPARE_TOKENS)
        if length - held_from > keeps + SPARE_TOKENS:
            row.dropping = length - keeps - held_from

    def slot(self, batch: int, index: int) -> int:
        """Return where a token lies that a row holds."""
        row = self.rows[batch]
        if not row.dropped or (self.kept is not None and index < self.kept.first):
            return index
        return index - row.dropped

    def append(self, layer: int, rows: slice, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new tokens of neighbouring rows that hold the same tokens.

        Args:
            layer: Layer index.
            rows: The rows.
            key: (rows, num_kv_heads, len, head_dim), rotated.
            value: (rows, num_kv_heads, len, head_dim).

        Returns:
            Keys and values of all tokens that were held before and of the new ones, by slot.
        """
        row = self.rows[rows.start]
        start = self.slot(rows.start, row.length)
        if not row.dropping:
            self.write(layer, rows, start, key, value)
            return self.seen(layer, rows, start + key.shape[2])
        assert self.kept is not None
        if start:
            held = self.keys[layer][rows, :, :start], self.values[layer][rows, :, :start]
            key, value = (torch.cat(both, dim=2) for both in zip(held, (key, value), strict=True))
        first, last = self.kept.first, key.shape[2] - self.kept.first - row.dropping
        self._reserve(layer, first + last, key)
        for buffer, states in ((self.keys[layer], key), (self.values[layer], value)):
            buffer[rows, :, :first] = states[:, :, :first]
            buffer[rows, :, first : first + last] = states[:, :, first + row.dropping :]
        return key, value

    def write(self, layer: int, rows: slice, start: int, key: Tensor, value: Tensor) -> None:
        """Store keys and values of consecutive tokens of neighbouring rows.

        Args:
            layer: Layer index.
            rows: The rows.
            start: Slot of the first token.
            key: (rows, num_kv_heads, len, head_dim), rotated.
            value: (rows, num_kv_heads, len, head_dim).
        """
        end = start + key.shape[2]
        expected = () if self.kept else (row.prompt_len for row in self.rows[rows])
        self._reserve(layer, max([end, *expected]), key)
        self.keys[layer][rows, :, start:end] = key
        self.values[layer][rows, :, start:end] = value

    def write_chunks(self, layer: int, batch: int, start: int, key: Tensor, value: Tensor) -> None:
        """Store keys and values of consecutive chunks of a row.

        Args:
            layer: Layer index.
            batch: Row.
            start: Slot of the first token.
            key: (chunks, num_kv_heads, width, head_dim), rotated, in any dtype.
            value: Like key, in the cache's dtype.
        """
        chunks, _, width, _ = key.shape
        end = start + chunks * width
        self._reserve(layer, max(end, self.rows[batch].prompt_len), value)
        for buffer, states in ((self.keys[layer], key), (self.values[layer], value)):
            buffer[batch, :, start:end].unflatten(1, (chunks, width)).copy_(states.transpose(0, 1))

    def seen(self, layer: int, rows: slice, count: int) -> tuple[Tensor, Tensor]:
        """Return views of the first keys and values of neighbouring rows, (rows, num_kv_heads, count, head_dim)."""
        return self.keys[layer][rows, :, :count], self.values[layer][rows, :, :count]

    def recent(self, layer: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the recent keys and values of neighbouring rows, in any order."""
        return self.recent_keys[layer][rows], self.recent_values[layer][rows]

    def write_recent(self, layer: int, rows: slice, width: int, start: int, key: Tensor, value: Tensor) -> None:
        """Store recent keys and values of consecutive tokens of neighbouring rows.

        Args:
            layer: Layer index.
            rows: The rows.
            width: Slots of a row.
            start: Index of the first token.
            key: (rows, num_kv_heads, len, head_dim) at their true positions, at most `width` of them.
            value: Like key, without positions.
        """
        for buffers, states in ((self.recent_keys, key), (self.recent_values, value)):
            buffer = buffers.get(layer)
            if buffer is None or buffer.shape[2] != width:
                shape = (len(self.rows), states.shape[1], width, states.shape[3])
                buffers[layer] = buffer = states.new_zeros(shape)
            slot, count = start % width, states.shape[2]
            fitting = min(count, width - slot)
            buffer[rows, :, slot : slot + fitting] = states[:, :, :fitting]
            if fitting < count:
                buffer[rows, :, : count - fitting] = states[:, :, fitting:]

    def reweave(self, batch: int, weave: Placement, layers: Layers, end: int | None = None) -> None:
        """Move a row's keys to new positions by one rotation each.

        Args:
            batch: Row.
            weave: The new positions.
            layers: The model's layers; those with a window of their own keep their keys' positions.
            end: Move only the keys before this slot; None moves all of the row's.
        """
        row = self.rows[batch]
        old, row.weave = row.weave, weave
        if weave.same_positions(old):
            return
        index = torch.arange(row.length if end is None else end)
        distance = weave.position(index) - (index if old is None else old.position(index))
        self.move(batch, lambda pairs: distance, layers)

    def move(self, batch: int, distance_of: Callable[[int], Tensor], layers: Layers) -> None:
        """Rotate a row's first keys.

        Args:
            batch: Row.
            distance_of: From the number of rotated pairs, (len,) or (len, pairs) new minus old position of each key.
            layers: The model's layers; those with a window of their own keep their keys' positions.
        """
        for group, members in layers.members():
            if group.window is not None or group.encoding.follows_length:
                continue
            distance = distance_of(group.encoding.pairs)
            angles = group.encoding.shift(distance[None])
            for layer in members:
                kept = self.keys[layer][batch : batch + 1, :, : len(distance)]
                kept.copy_(rotate_unrounded(kept, angles))

    def evict(self, batch: int, dropped: range, layers: Layers) -> None:
        """Drop tokens of a row that are stored at linear positions; those after them close up, in slot and position.

        Args:
            batch: Row.
            dropped: Their slots.
            layers: The model's layers; those with a window of their own keep their keys' positions.
        """
        row = self.rows[batch]
        kept = row.length - dropped.stop
        for layer, keys in self.keys.items():
            values, encoding = self.values[layer], layers.of(layer).encoding
            angles = encoding.shift(torch.full((1, kept), 0 if encoding.follows_length else -len(dropped)))
            moved = rotate_unrounded(keys[batch : batch + 1, :, dropped.stop : row.length], angles)
            keys[batch : batch + 1, :, dropped.start : dropped.start + kept] = moved
            values[batch, :, dropped.start : dropped.start + kept] = values[batch, :, dropped.stop : row.length].clone()
        row.length -= len(dropped)

    def _reserve(self, layer: int, length: int, like: Tensor) -> None:
        """Make room for `length` tokens per row; a growing buffer gets an eighth more than it needs.

        Buffers follow the dtype and the device of what is written, which change with the model's or with autocast.
        """
        old = self.keys.get(layer)
        if old is not None and old.shape[2] >= length and (old.dtype, old.device) == (like.dtype, like.device):
            return
        capacity = length + max(64, length // 8 if old is not None else 0)
        shape = (len(self.rows), like.shape[1], capacity, like.shape[3])
        for buffers in (self.keys, self.values):
            grown = torch.empty(shape, dtype=like.dtype, device=like.device)
            if old is not None:
                grown[:, :, : old.shape[2]] = buffers[layer]
            buffers[layer] = grown

    def select(self, indices: Tensor) -> None:
        """Keep the rows with these indices, in this order, repetitions allowed."""
        self.rows = [replace(self.rows[i]) for i in indices.tolist()]
        for buffers in (self.keys, self.values, self.recent_keys, self.recent_values):
            for layer, buffer in buffers.items():
                buffers[layer] = buffer.index_select(0, indices.to(buffer.device))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row.

        Args:
            tokens_to_remove: Their number, negative as in transformers.

        Raises:
            UsageError: Keys were moved or dropped for tokens that came later, which cannot be taken back.
        """
        count = abs(tokens_to_remove)
        for row in self.rows:
            # What the tokens after those that remain would see.
            if self.kept is not None and row.dropped > max(0, row.length - count - self.kept.last - self.kept.first):
                most = row.length - self.kept.first - row.dropped - self.kept.last
                raise UsageError(
                    f"this cache can be cropped by {most} tokens, found {count}: earlier ones are not kept"
                )
        if any(row.weave is not None or row.length != self.columns for row in self.rows):
            raise UsageError("this cache cannot be cropped: assisted and contrastive decoding are not supported")
        for row in self.rows:
            row.length -= count
            row.recent_len = -1
        self.columns -= count
