"""The key-value cache: buffers that grow geometrically, keys stored at the positions at which they are scored."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mesa_lm.attention.encoding import rotate
from mesa_lm.attention.layer_groups import Layers
from mesa_lm.errors import ModelError, UsageError
from mesa_lm.methods.recall import ContextMemory
from mesa_lm.methods.weaves import Placement


@dataclass(slots=True)
class CachedRow:
    """What one sequence of the batch holds in the cache.

    Attributes:
        length: Cached tokens.
        prompt_len: Length of its prompt in tokens.
        weave: Positions at which its keys are stored; None is linear.
        recent_len: Length up to which the buffers of recent keys follow it; -1: they do not.
        away: Tokens whose keys and values lie in host memory, in layers without a window; later ones have closed up.
    """

    length: int = 0
    prompt_len: int = 0
    weave: Placement | None = None
    recent_len: int = -1
    away: range = range(0)


class WovenCache:
    """Keys and values of a batch of sequences of any lengths, without padding: token i of a row lies in slot i.

    transformers meets it as the content of a cache of its own, see `cache_layer`.

    Attributes:
        rows: State of each sequence.
        columns: Padded input columns consumed so far, which is what `generate` counts.
        keys: Per layer (batch, num_kv_heads, capacity, head_dim), rotated to the position given by the row's weave.
        values: Per layer, like keys.
        recent_keys: Per layer the last keys at their true positions, where decoding needs them beside those that are
            stored; token i lies in slot i modulo the number of slots.
        recent_values: Per layer, like recent_keys.
        memories: Per layer what each row's tokens have left behind beside keys and values, under some methods.
        host: Keys and values that lie in host memory; a row's first token there is the first one of `away`.
    """

    def __init__(self, batch_size: int) -> None:
        self.rows = [CachedRow() for _ in range(batch_size)]
        self.columns = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.recent_keys: dict[int, Tensor] = {}
        self.recent_values: dict[int, Tensor] = {}
        self.memories: dict[int, list[ContextMemory | None]] = {}
        self.host: WovenCache | None = None

    @classmethod
    def from_rotated(cls, cache: Cache, columns: list[Tensor], starts: list[int], layers: Layers) -> "WovenCache":
        """Take over a cache that the untouched model has filled at consecutive positions.

        Args:
            cache: Its keys are (batch, num_kv_heads, padded length, head_dim).
            columns: For every row the indices of its tokens among the padded ones.
            starts: For every row the position of its first token.
            layers: The model's layers.

        Raises:
            ModelError: Its layers do not hold every token that will be seen, for example those of a quantised cache.
        """
        woven = cls(len(columns))
        woven.columns = int(cache.get_seq_length())
        for row, kept in zip(woven.rows, columns, strict=True):
            row.length = row.prompt_len = len(kept)
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
            unseen = [0 if window is None else max(0, len(kept) - window + 1) for kept in columns]
            needed = min(
                (int(kept[first]) for kept, first in zip(columns, unseen, strict=True) if first < len(kept)), default=0
            )
            if keys is None or values is None or not 0 <= dropped <= needed:
                raise ModelError(f"a {type(layer).__name__} of layer {index} does not hold every token's keys")
            for batch, kept in enumerate(columns):
                slot = torch.arange(unseen[batch], len(kept))
                held = (kept[slot] - dropped).to(keys.device)
                encoding, start = layers.of(index).encoding, starts[batch]
                key, value = encoding.enter_cached(
                    keys[batch : batch + 1].index_select(2, held),
                    values[batch : batch + 1].index_select(2, held),
                    slot + start,
                )
                if start and not encoding.follows_length:
                    key = rotate(key, encoding.shift(torch.full((1, len(slot)), -start)))
                woven._reserve(index, longest, key)
                woven.keys[index][batch, :, unseen[batch] : len(kept)] = key[0]
                woven.values[index][batch, :, unseen[batch] : len(kept)] = value[0]
        return woven

    def write(self, layer: int, rows: slice, start: int, key: Tensor, value: Tensor, whole_prompt: bool = True) -> None:
        """Store keys and values of consecutive tokens of neighbouring rows.

        Args:
            layer: Layer index.
            rows: The rows.
            start: Slot of the first token.
            key: (rows, num_kv_heads, len, head_dim), rotated.
            value: (rows, num_kv_heads, len, head_dim).
            whole_prompt: Make room for the rows' prompts at once.
        """
        end = start + key.shape[2]
        self._reserve(layer, max(end, *(row.prompt_len * whole_prompt for row in self.rows[rows])), key)
        self.keys[layer][rows, :, start:end] = key
        self.values[layer][rows, :, start:end] = value

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
                kept.copy_(rotate(kept.to(angles.cos.dtype), angles))

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
            moved = keys[batch : batch + 1, :, dropped.stop : row.length].to(angles.cos.dtype)
            keys[batch : batch + 1, :, dropped.start : dropped.start + kept] = rotate(moved, angles).to(keys.dtype)
            values[batch, :, dropped.start : dropped.start + kept] = values[batch, :, dropped.stop : row.length].clone()
        row.length -= len(dropped)

    def move_away(self, batch: int, away: range, layers: Layers) -> None:
        """Move keys and values of a row from the device to host memory; those after them close up.

        Args:
            batch: Row.
            away: Tokens that are to lie there; those that do already are its first ones.
            layers: The model's layers; those with a window of their own keep their keys.
        """
        row = self.rows[batch]
        before, count = len(row.away), len(away) - len(row.away)
        if count <= 0:
            return
        self.host = self.host or WovenCache(len(self.rows))
        held, one = row.length - before, slice(batch, batch + 1)
        leaving, staying = slice(away.start, away.start + count), slice(away.start + count, held)
        for group, members in layers.members():
            for layer in members if group.window is None else ():
                keys, values = self.keys[layer][one], self.values[layer][one]
                self.host.write(layer, one, before, keys[:, :, leaving].cpu(), values[:, :, leaving].cpu())
                for states in (keys, values):
                    states[:, :, away.start : held - count] = states[:, :, staying].clone()
        row.away = away

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
        for layer, memories in self.memories.items():
            self.memories[layer] = [memories[i] for i in indices.tolist()]
        if self.host is not None:
            self.host.select(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row.

        Args:
            tokens_to_remove: Their number, negative as in transformers.

        Raises:
            UsageError: Keys were moved or dropped for tokens that came later, or these left something behind, which
                cannot be taken back.
        """
        count = abs(tokens_to_remove)
        if self.memories or any(row.weave is not None or row.length != self.columns for row in self.rows):
            raise UsageError("this cache cannot be cropped: assisted and contrastive decoding are not supported")
        for row in self.rows:
            row.length -= count
            row.recent_len = -1
        self.columns -= count
