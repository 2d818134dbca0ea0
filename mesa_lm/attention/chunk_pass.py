"""Passes of a prompt's middle chunks, which are rows of their own in the model's batch.

Rows are ordered by prompt, then by chunk.
"""

import torch
from torch import Tensor

from mesa_lm.attention.band_pass import BandPass
from mesa_lm.attention.chunk_store import ChunkStates
from mesa_lm.attention.encoding import Angles, Encoding, rotate
from mesa_lm.attention.kernels import Scoring, attend, merge
from mesa_lm.attention.layer_groups import LayerGroup, Layers
from mesa_lm.attention.model_pass import ModelPass, NewTokens
from mesa_lm.attention.window import LayerWindow
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Block, Layout
from mesa_lm.methods.weaves import Placement


def chunk_positions(layout: Layout, block: Block) -> Tensor:
    """Return the positions at which middle chunks are run, (chunks, width)."""
    if layout.numbers_anew:
        return torch.arange(layout.seen, layout.seen + block.width).expand(block.chunks, -1)
    return torch.arange(block.start, block.start + block.width * block.chunks).view(block.chunks, block.width)


class ChunkPass:
    """Middle chunks of equally long prompts; each sees the first chunk, or its beginning, and, causally, itself.

    Their keys attend at the positions of `chunk_positions` and are stored at their woven ones.

    Attributes:
        states: Per layer the keys, at the pass's `positions`, and the values that `attend` was given, if they are kept.
    """

    def __init__(
        self,
        tokens: NewTokens,
        method: Method,
        layout: Layout,
        block: Block,
        weave: Placement | None,
        encoding: Encoding,
        keeps_states: bool = False,
    ) -> None:
        """Prepare the pass.

        Args:
            tokens: The chunks' tokens; the cache holds the first chunk at linear positions.
            method: Bound to the model.
            layout: Of the prompts.
            block: Which middle chunks.
            weave: Where their keys are stored; None is linear.
            encoding: The layers' position encoding.
            keeps_states: Whether to fill `states`.
        """
        self.states: dict[int, tuple[Tensor, Tensor]] = {}
        self._keeps_states = keeps_states
        self._cache, self._rows, self._seen, self._block = tokens.cache, tokens.rows, layout.seen, block
        own = encoding.for_input(method, tokens.extents()[0])
        takes_raw = own is not encoding or encoding.follows_length
        run_at = chunk_positions(layout, block)
        self._run_angles = self._of_prompts(own.angles(run_at)) if takes_raw else None
        # Where angles follow the input's length, keys are stored at position 0.
        moves = encoding.follows_length
        self._first_shift = own.shift(torch.arange(layout.seen)[None]) if moves else None
        self.positions = None if takes_raw else run_at.repeat(len(self._rows), 1)
        index = torch.arange(block.start, block.start + block.width * block.chunks).view(block.chunks, block.width)
        position = index * 0 if moves else index if weave is None else weave.position(index)
        self._stored_angles: Angles | None = None
        if takes_raw:
            self._stored_angles = self._of_prompts(own.angles(position))
        elif bool((position != run_at).any()):
            self._stored_angles = self._of_prompts(own.shift(position - run_at))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `GroupPass`, rows times chunks."""
        if self._keeps_states:
            self.states[layer] = key, value
        self.store(layer, key, value)
        if self._run_angles is not None:
            query, key = rotate(query, self._run_angles), rotate(key, self._run_angles)
        own = attend(query, key, value, scoring, causal=True)
        first_key, first_value = (
            self._for_chunks([states[layer][row : row + 1, :, : self._seen] for row in self._rows])
            for states in (self._cache.keys, self._cache.values)
        )
        if self._first_shift is not None:
            first_key = rotate(first_key, self._first_shift)
        return merge([attend(query, first_key, first_value, scoring, causal=False), own])

    def _of_prompts(self, angles: Angles) -> Angles:
        """Repeat the angles of the chunks for every prompt."""
        return Angles(*(table.repeat(len(self._rows), 1, 1) for table in angles))

    def _for_chunks(self, states: list[Tensor]) -> Tensor:
        """Repeat (1, num_kv_heads, len, head_dim) of each prompt for its chunks."""
        repeated = [own.expand(self._block.chunks, -1, -1, -1) for own in states]
        return repeated[0] if len(repeated) == 1 else torch.cat(repeated)

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write keys, at the pass's `positions`, and values to the cache; shapes as in `attend`."""
        count = self._block.chunks
        if self._stored_angles is not None:
            key = rotate(key, self._stored_angles)
        for i, row in enumerate(self._rows):
            chunks = slice(i * count, (i + 1) * count)
            # (count, num_kv_heads, width, head_dim) -> (1, num_kv_heads, count * width, head_dim)
            row_key, row_value = (states[chunks].transpose(0, 1).flatten(1, 2)[None] for states in (key, value))
            self._cache.write(layer, slice(row, row + 1), self._block.start, row_key, row_value)


class WindowedChunkPass:
    """Middle chunks in layers with a window: there they are consecutive tokens, as in the untouched model."""

    positions: Tensor | None = None

    def __init__(self, tokens: NewTokens, window: int, encoding: Encoding) -> None:
        """Prepare the pass.

        Args:
            tokens: The chunks' tokens; prompts of one length.
            window: Keys that a query sees.
            encoding: The layers' position encoding.
        """
        self._prompts = len(tokens.rows)
        self._consecutive = BandPass(tokens, LayerWindow(window=window), encoding)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `GroupPass`, rows times chunks."""
        output = self._consecutive.attend(layer, self._joined(query), self._joined(key), self._joined(value), scoring)
        # (prompts, num_heads, chunks * width, head_dim) -> (prompts * chunks, num_heads, width, head_dim)
        width = query.shape[2]
        batch, num_heads, _, head_dim = output.shape
        return output.view(batch, num_heads, -1, width, head_dim).transpose(1, 2).flatten(0, 1)

    def _joined(self, states: Tensor) -> Tensor:
        """Turn (prompts * chunks, heads, width, head_dim) into (prompts, heads, chunks * width, head_dim)."""
        return states.reshape(self._prompts, -1, *states.shape[1:]).transpose(1, 2).flatten(2, 3)


class MiddleChunksPass(ModelPass):
    """Middle chunks through all layers; a `ChunkStore` may keep their keys and values, or have kept them."""

    def __init__(
        self,
        layers: Layers,
        tokens: NewTokens,
        method: Method,
        layout: Layout,
        block: Block,
        weave: Placement | None,
        keeps_states: bool,
    ) -> None:
        """Prepare the pass; arguments as in `ModelPass` and `ChunkPass`."""
        self._whole: list[ChunkPass] = []

        def pass_of(group: LayerGroup) -> ChunkPass | WindowedChunkPass:
            if group.window is not None:
                return WindowedChunkPass(tokens, group.window, group.encoding)
            self._whole.append(ChunkPass(tokens, method, layout, block, weave, group.encoding, keeps_states))
            return self._whole[-1]

        super().__init__(layers, tokens, pass_of)

    def states(self) -> list[ChunkStates]:
        """Return the keys and values of each chunk, after the last layer."""
        kept = {layer: states for chunk_pass in self._whole for layer, states in chunk_pass.states.items()}
        count = len(next(iter(kept.values()))[0])
        return [{layer: (key[i], value[i]) for layer, (key, value) in kept.items()} for i in range(count)]

    def restore(self, chunks: list[ChunkStates]) -> None:
        """Write the keys and values of chunks that were run before to the cache, in the place of running the pass."""
        for layer in chunks[0]:
            key, value = (torch.stack([states[layer][i] for states in chunks]) for i in range(2))
            self._whole[self._layers.group_of[layer]].store(layer, key, value)
        self.finish()
