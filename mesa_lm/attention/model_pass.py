"""A pass through a model whose layers differ: each kind of layer has the pass that serves it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mesa_lm.attention.band_pass import Banded
from mesa_lm.attention.cache import WovenCache
from mesa_lm.attention.chunk_store import ChunkStates
from mesa_lm.attention.dense_pass import Append, MiddleChunks
from mesa_lm.attention.layer_groups import Group, Layers
from mesa_lm.attention.rotary import Encoding
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Block, Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindow(Method):
    """What a sliding-window layer does: see the last `window` keys at their true distances.

    Source: Mistral 7B, arXiv 2310.06825, section 2.
    """

    name: ClassVar[str] = "sliding_window"

    window: int

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`."""
        return (Band((index - self.window + 1).clamp(min=0), index + 1, index, lambda key: key),)


class WindowedChunks:
    """The middle chunks of prompts in layers with a window: there they are consecutive tokens, as in the model."""

    def __init__(self, cache: WovenCache, rows: list[int], block: Block, window: int, rotary: Encoding) -> None:
        """Prepare the pass.

        Args:
            cache: Holds the rows' earlier tokens.
            rows: The prompts' rows, all of one length.
            block: Which middle chunks.
            window: Keys that a query sees.
            rotary: The layers' position encoding.
        """
        self.rows = len(rows)
        totals = [cache.rows[row].prompt_len for row in rows]
        self.inner = Banded(cache, rows, block.width * block.chunks, SlidingWindow(window=window), rotary, totals)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `MiddleChunks.attend`."""
        output = self.inner.attend(layer, self._joined(query), self._joined(key), self._joined(value), scaling)
        # (rows, num_heads, chunks * width, head_dim) -> (rows * chunks, num_heads, width, head_dim)
        width = query.shape[2]
        batch, num_heads, _, head_dim = output.shape
        return output.view(batch, num_heads, -1, width, head_dim).transpose(1, 2).flatten(0, 1)

    def _joined(self, states: Tensor) -> Tensor:
        """Turn (rows * chunks, heads, width, head_dim) into (rows, heads, chunks * width, head_dim)."""
        return states.reshape(self.rows, -1, *states.shape[1:]).transpose(1, 2).flatten(2, 3)

    def finish(self) -> None:
        """Count the chunks' tokens as cached, after the last layer."""
        self.inner.finish()


Part = Append | MiddleChunks | Banded | WindowedChunks


class Pass:
    """A pass through all layers of a model."""

    def __init__(self, layers: Layers, part_of: Callable[[Group], Part]) -> None:
        """Prepare the pass.

        Args:
            layers: The model's layers.
            part_of: Returns the pass of one kind of layers.
        """
        self._layers = layers
        self._parts = [part_of(group) for group in layers.groups]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store keys and values and return the attention output.

        Args:
            layer: Layer index.
            query: (rows, num_heads, new, head_dim), without positions, as the model's layer has it.
            key: (rows, num_kv_heads, new, head_dim), likewise.
            value: Like key.
            scaling: Factor of the scores.

        Returns:
            (rows, num_heads, new, head_dim).
        """
        number = self._layers.group_of[layer]
        encoding = self._layers.groups[number].encoding
        entered = encoding.enter(query, key, value, scaling)
        return encoding.leave(self._parts[number].attend(layer, *entered, scaling), value)

    def seen(self) -> list[ChunkStates]:
        """Return the keys and values of each middle chunk of a pass that keeps them."""
        chunks: list[ChunkStates] = []
        for part in self._parts:
            assert isinstance(part, MiddleChunks), "only middle chunks are kept"
            chunks = chunks or [{} for _ in range(len(part.rows) * part.block.chunks)]
            for layer, (key, value) in part.seen.items():
                for i, states in enumerate(chunks):
                    states[layer] = key[i], value[i]
        return chunks

    def restore(self, chunks: list[ChunkStates]) -> None:
        """Write middle chunks that were seen before to the cache, in the place of running the pass.

        Args:
            chunks: Ordered by prompt, then by chunk.
        """
        for layer in chunks[0]:
            part = self._parts[self._layers.group_of[layer]]
            assert isinstance(part, MiddleChunks), "only middle chunks are kept"
            key, value = (torch.stack([states[layer][i] for states in chunks]) for i in range(2))
            part.store(layer, key, value)

    def finish(self) -> None:
        """Count the new tokens as cached, after the last layer."""
        self._parts[0].finish()  # the parts share the cache and count the same tokens


def appending(cache: WovenCache, rows: list[int], new: int, method: Method, layers: Layers, totals: list[int]) -> Pass:
    """Return the pass that appends tokens to rows.

    Args:
        cache: Holds the rows' earlier tokens.
        rows: The rows.
        new: Number of new tokens of each.
        method: Bound to the model.
        layers: The model's layers.
        totals: For each row the tokens of the input that the new ones belong to; see `Extent`.
    """

    def part(group: Group) -> Part:
        if group.window is not None:
            return Banded(cache, rows, new, SlidingWindow(window=group.window), group.encoding, totals)
        kind = Banded if method.has_bands else Append
        return kind(cache, rows, new, method, group.encoding, totals)

    return Pass(layers, part)
