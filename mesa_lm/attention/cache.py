"""The key-value cache: buffers that grow geometrically, keys stored at the positions at which they are scored."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mesa_lm.attention.encoding import rotate_unrounded
from mesa_lm.attention.layer_groups import Layers
from mesa_lm.attention.ranks import Ranks
from mesa_lm.errors import ModelError, UsageError
from mesa_lm.methods.geometry import Kept
from mesa_lm.methods.recall import ContextMemory
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
        room: Tokens of its prompt that are held, for which the first write makes room.
        held: Ranges of its tokens that this process holds, in the order of their slots; None: all.
        unseen: Its first slots that another process attends to.
        away: Tokens whose keys and values lie in host memory, in layers without a window; later ones have closed up.
    """

    length: int = 0
    prompt_len: int = 0
    weave: Placement | None = None
    recent_len: int = -1
    dropped: int = 0
    dropping: int = 0
    room: int = 0
    held: tuple[range, ...] | None = None
    unseen: int = 0
    away: range = range(0)

    @property
    def slots(self) -> int:
        """Tokens that are held."""
        return self.length - self.dropped if self.held is None else sum(map(len, self.held))

    @property
    def seen(self) -> int:
        """Tokens that are held and attended to."""
        return self.slots - self.unseen

    def index(self) -> Tensor:
        """Return (slots,) the indices of the tokens that are held."""
        if self.held is None:
            return torch.arange(self.length)
        return torch.cat([torch.arange(0), *(torch.arange(span.start, span.stop) for span in self.held)])

    def crop(self, length: int) -> None:
        """Forget the tokens from an index on."""
        self.length, self.recent_len = length, -1
        if self.held is not None:
            spans = (range(span.start, min(span.stop, length)) for span in self.held)
            self.held = tuple(span for span in spans if span)
            self.unseen = min(self.unseen, length)


class WovenCache:
    """Keys and values of a batch of sequences of any lengths, without padding.

    Token i of a row lies in slot i. Where no later token sees more than the first and the last ones, those between are
    dropped and the last ones close up, see `slot`.

    Where processes share prompts, each holds some tokens of a row, in the slots from 0 on in their order.

    transformers meets it as the content of a cache of its own, see `cache_layer`.

    Attributes:
        rows: State of each sequence.
        kept: Which tokens later ones may see; None: all.
        columns: Padded input columns consumed so far, which is what `generate` counts.
        ranks: The processes that share the prompts; None: this one has them to itself.
        is_offloaded: Whether keys and values lie in the host's memory, and go to their layer's device when it runs.
        devices: Per layer the device that it runs on.
        keys: Per layer (batch, num_kv_heads, capacity, head_dim), rotated to the position given by the row's weave.
        values: Per layer, like keys.
        recent_keys: Per layer the last keys at their true positions, where decoding needs them beside those that are
            stored; token i lies in slot i modulo the number of slots.
        recent_values: Per layer, like recent_keys.
        memories: Per layer what each row's tokens have left behind beside keys and values, under some methods.
        host: Keys and values that lie in host memory; a row's first token there is the first one of `away`.
    """

    def __init__(
        self, batch_size: int, ranks: Ranks | None = None, is_offloaded: bool = False, kept: Kept | None = None
    ) -> None:
        self.rows = [CachedRow(held=None if ranks is None else ()) for _ in range(batch_size)]
        self.kept = kept
        self.columns = 0
        self.ranks, self.is_offloaded = ranks, is_offloaded
        self.devices: dict[int, torch.device] = {}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.recent_keys: dict[int, Tensor] = {}
        self.recent_values: dict[int, Tensor] = {}
        self.memories: dict[int, list[ContextMemory | None]] = {}
        self.host: WovenCache | None = None

    @classmethod
    def from_rotated(
        cls,
        cache: Cache,
        columns: list[Tensor],
        starts: list[int],
        layers: Layers,
        ranks: Ranks | None = None,
        is_offloaded: bool = False,
        kept: Kept | None = None,
    ) -> "WovenCache":
        """Take over a cache that the untouched model has filled at consecutive positions.

        Args:
            cache: Its keys are (batch, num_kv_heads, padded length, head_dim).
            columns: For every row the indices of its tokens among the padded ones.
            starts: For every row the position of its first token.
            layers: The model's layers.
            ranks: The processes that share the prompts, each of which has filled such a cache; None: there are none.
            is_offloaded: Whether to take it over into the host's memory.
            kept: Which tokens later ones may see; None: all.

        Raises:
            ModelError: Its layers do not hold every token that will be seen, for example those of a quantised cache.
        """
        woven = cls(len(columns), ranks, is_offloaded, kept)
        woven.columns = int(cache.get_seq_length())
        for batch, own in enumerate(columns):
            woven.count(batch, 0, len(own))
            woven.rows[batch].prompt_len = len(own)
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
                for buffer, states in ((woven.keys[index], key), (woven.values[index], value)):
                    buffer[batch, :, unseen[batch] : len(own)] = states[0].to(buffer.device)
        return woven

    def keeps(self, batch: int) -> bool:
        """Tell whether this process keeps the keys and values of tokens that are appended to a row."""
        length = self.rows[batch].length
        return self.ranks is None or length == 0 or self.ranks.keeps(length)

    def count(self, batch: int, start: int, new: int, is_kept: bool = True) -> None:
        """Note that a row's next tokens have run, and whether this process has kept their keys and values.

        What begins a row is kept by every process, and attended to by the first one.

        Args:
            batch: Row.
            start: Index of the first new token.
            new: Their number.
            is_kept: As `keeps` has it; middle chunks are kept by the process that runs them.
        """
        row = self.rows[batch]
        if row.held is not None and is_kept and new:
            goes_on = bool(row.held) and row.held[-1].stop == start
            span = range(row.held[-1].start if goes_on else start, start + new)
            row.held = (*row.held[: len(row.held) - goes_on], span)
        if start == 0 and self.ranks is not None and self.ranks.rank > 0:
            row.unseen = new
        row.length = start + new
        row.dropped, row.dropping = row.dropped + row.dropping, 0
        if row.recent_len != row.length:
            row.recent_len = -1

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
        start = row.slots
        if not row.dropping:
            self.write(layer, rows, start, key, value)
            return self.seen(layer, rows, start - row.unseen + key.shape[2])
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
        expected = (row.room for row in self.rows[rows]) if whole_prompt and self.kept is None else ()
        self._reserve(layer, max([end, *expected]), key)
        for buffer, states in ((self.keys[layer], key), (self.values[layer], value)):
            buffer[rows, :, start:end] = states.to(buffer.device)

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
        self._reserve(layer, max(end, self.rows[batch].room), value)
        for buffer, states in ((self.keys[layer], key), (self.values[layer], value)):
            buffer[batch, :, start:end].unflatten(1, (chunks, width)).copy_(states.transpose(0, 1).to(buffer.device))

    def seen(self, layer: int, rows: slice, count: int) -> tuple[Tensor, Tensor]:
        """Return the first keys and values of neighbouring rows, (rows, num_kv_heads, count, head_dim).

        They are views, or copies where keys and values lie elsewhere than the layer. Those that another process attends
        to are left out.
        """
        first = self.rows[rows.start].unseen
        seen, device = slice(first, first + count), self.devices[layer]
        # Whole rows go to the device: a part of each head would be gathered by the host first.
        key, value = (buffers[layer][rows].to(device)[:, :, seen] for buffers in (self.keys, self.values))
        return key, value

    def beginning(self, layer: int, row: int, count: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the first tokens that a row holds, (1, num_kv_heads, count, head_dim)."""
        device = self.devices[layer]
        key, value = (buffers[layer][row : row + 1, :, :count].to(device) for buffers in (self.keys, self.values))
        return key, value

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
            end: Move only the keys before this index, which are held; None moves all that are held.
        """
        row = self.rows[batch]
        old, row.weave = row.weave, weave
        if weave.same_positions(old):
            return
        index = row.index() if end is None else torch.arange(end)
        distance = weave.position(index) - (index if old is None else old.position(index))
        self.move(batch, lambda pairs: distance, layers)

    def move(self, batch: int, distance_of: Callable[[int], Tensor], layers: Layers) -> None:
        """Rotate a row's first keys.

        Args:
            batch: Row.
            distance_of: From the number of rotated pairs, (len,) or (len, pairs) new minus old position of each key, in
                the order of their slots.
            layers: The model's layers; those with a window of their own keep their keys' positions.
        """
        for group, members in layers.members():
            if group.window is not None or group.encoding.follows_length:
                continue
            distance = distance_of(group.encoding.pairs)
            angles = group.encoding.shift(distance[None])
            for layer in members:
                kept = self.keys[layer][batch : batch + 1, :, : len(distance)]
                kept.copy_(rotate_unrounded(kept.to(self.devices[layer]), angles).to(kept.device))

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

        Buffers follow the dtype and, unless they are offloaded, the device of what is written, which change with the
        model's or with autocast.
        """
        old, self.devices[layer] = self.keys.get(layer), like.device
        device = torch.device("cpu") if self.is_offloaded else like.device
        if old is not None and old.shape[2] >= length and (old.dtype, old.device) == (like.dtype, device):
            return
        capacity = length + max(64, length // 8 if old is not None else 0)
        shape = (len(self.rows), like.shape[1], capacity, like.shape[3])
        for buffers in (self.keys, self.values):
            # Pinned memory is what a GPU copies from at full speed.
            pinned = self.is_offloaded and torch.cuda.is_available()
            grown = torch.empty(shape, dtype=like.dtype, device=device, pin_memory=pinned)
            if old is not None:
                grown[:, :, : old.shape[2]] = buffers[layer].to(device)
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
        for row in self.rows:
            # What the tokens after those that remain would see.
            if self.kept is not None and row.dropped > max(0, row.length - count - self.kept.last - self.kept.first):
                most = row.length - self.kept.first - row.dropped - self.kept.last
                raise UsageError(
                    f"this cache can be cropped by {most} tokens, found {count}: earlier ones are not kept"
                )
        if self.memories or any(row.weave is not None or row.length != self.columns for row in self.rows):
            raise UsageError("this cache cannot be cropped: assisted and contrastive decoding are not supported")
        for row in self.rows:
            row.crop(row.length - count)
        self.columns -= count
