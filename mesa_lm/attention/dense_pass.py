"""The passes through the model that a prompt and its continuation are made of.

A pass is handed to the model's attention layers, which give it raw queries and keys; it rotates them, stores the keys
and attends. Several rows of the batch, and several chunks of a row, go through the model as rows of one pass.
"""

from itertools import accumulate, groupby

import torch
from torch import Tensor

from mesa_lm.attention.cache import WovenCache
from mesa_lm.attention.kernels import attend, merge
from mesa_lm.attention.rotary import Angles, Encoding, multiply, rotate
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Block, Extent
from mesa_lm.methods.weaves import Placement


class Append:
    """New tokens at the end of rows; they see everything cached and, causally, one another."""

    def __init__(
        self, cache: WovenCache, rows: list[int], new: int, method: Method, rotary: Encoding, totals: list[int]
    ) -> None:
        """Prepare the pass.

        Args:
            cache: Holds the rows' earlier tokens.
            rows: The rows.
            new: Number of new tokens of each.
            method: Bound to the model.
            rotary: The layers' position encoding.
            totals: For each row the tokens of the input that the new ones belong to; see `Extent`.
        """
        self.cache, self.rows, self.new, self.spared = cache, rows, new, rotary.spared
        angles, scales = [], []
        self.moves: list[Angles] = []  # per row, for keys that are cached at position 0
        for row, total in zip(rows, totals, strict=True):
            state = cache.rows[row]
            extent = Extent(state.prompt_len, total)
            index = torch.arange(state.length, state.length + new)
            position = index if state.weave is None else state.weave.position(index)
            own = rotary_for(method, rotary, extent)
            angles.append(own.angles(position[None]))
            if rotary.follows_length:
                seen = torch.arange(state.length + new)
                self.moves.append(own.shift((seen if state.weave is None else state.weave.position(seen))[None]))
                self.stored = own.angles(torch.zeros(1, new))
            scale = method.query_scale(index, extent)
            scales.append(torch.ones(new) if scale is None else scale)
        self.angles = Angles(torch.cat([a.cos for a in angles]), torch.cat([a.sin for a in angles]))
        scaled = torch.stack(scales)
        self.scale = scaled.to(rotary.device, rotary.dtype)[:, None, :, None] if bool((scaled != 1).any()) else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store keys and values and return the attention output.

        Args:
            layer: Layer index.
            query: (rows, num_heads, new, head_dim), unrotated.
            key: (rows, num_kv_heads, new, head_dim), unrotated.
            value: Like key.
            scaling: Factor of the scores.

        Returns:
            (rows, num_heads, new, head_dim).
        """
        stored = rotate(key, self.stored) if self.moves else None
        query, key = rotate(query, self.angles), rotate(key, self.angles)
        if self.scale is not None:
            query = multiply(query, self.scale, self.spared)
        for i, row in enumerate(self.rows):
            self.cache.write(layer, row, self.cache.rows[row].length, (key if stored is None else stored)[i], value[i])
        outputs: list[Tensor] = []
        for start, count in self._runs():
            past = self.cache.rows[self.rows[start]].length
            part = slice(start, start + count)
            cached = slice(self.rows[start], self.rows[start] + count)
            seen = past + 1 if self.new == 1 else past
            keys, values = self.cache.keys[layer][cached, :, :seen], self.cache.values[layer][cached, :, :seen]
            if self.moves:
                moves = self.moves[part]
                cos, sin = (torch.cat(tables)[:, :seen] for tables in zip(*moves, strict=True))
                keys = rotate(keys, Angles(cos, sin))
            if self.new == 1:
                outputs.append(attend(query[part], keys, values, scaling, causal=False).output)
                continue
            own = attend(query[part], key[part], value[part], scaling, causal=True)
            if past == 0:
                outputs.append(own.output)
            else:
                before = attend(query[part], keys, values, scaling, causal=False)
                outputs.append(merge(before, own))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _runs(self) -> list[tuple[int, int]]:
        """Cut the rows into runs that one kernel call can serve: neighbours in the cache with equally many tokens.

        Returns:
            For each run its first row, counted within the pass, and its number of rows.
        """
        kinds = [(self.cache.rows[row].length, row - i) for i, row in enumerate(self.rows)]
        counts = [len(list(run)) for _, run in groupby(kinds)]
        return list(zip([0, *accumulate(counts)], counts, strict=False))

    def finish(self) -> None:
        """Count the new tokens as cached, after the last layer."""
        for row in self.rows:
            self.cache.rows[row].length += self.new


def rotary_for(method: Method, rotary: Encoding, extent: Extent) -> Encoding:
    """Return the encoding with which a method runs an input."""
    parameters = None if method.static_rope else method.rope_parameters(rotary.config, extent.total)
    return rotary.for_length(extent.total) if parameters is None else rotary.scaled(parameters, extent.total)


class MiddleChunks:
    """Some middle chunks of equally long prompts; each sees the first chunk and, causally, itself.

    Rows of the pass are ordered by prompt, then by chunk. Their keys attend at local positions and are stored at
    their woven ones.

    Attributes:
        seen: Per layer its keys, not brought to any position, and its values, as `attend` was given them.
    """

    def __init__(
        self,
        cache: WovenCache,
        rows: list[int],
        first: int,
        block: Block,
        weave: Placement | None,
        rotary: Encoding,
        keeps: bool = False,
    ) -> None:
        """Prepare the pass.

        Args:
            cache: Holds the first chunk at linear positions.
            rows: The prompts' rows.
            first: Length of the first chunk in tokens.
            block: Which middle chunks.
            weave: Where their keys are stored; None is linear.
            rotary: The layers' position encoding.
            keeps: Whether to fill `seen`.
        """
        self.cache, self.rows, self.first, self.block, self.keeps = cache, rows, first, block, keeps
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        own = rotary.for_length(cache.rows[rows[0]].prompt_len)
        self.local = own.angles(torch.arange(first, first + block.width)[None])
        self.move = own.shift(torch.arange(first)[None]) if rotary.follows_length else None
        index = torch.arange(block.start, block.start + block.width * block.chunks).view(block.chunks, block.width)
        position = index if weave is None else weave.position(index)
        stored = own.angles(position * 0 if rotary.follows_length else position)
        self.stored = Angles(stored.cos.repeat(len(rows), 1, 1), stored.sin.repeat(len(rows), 1, 1))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store keys and values and return the attention output; shapes as in `Append.attend`, rows times chunks."""
        count = self.block.chunks
        query = rotate(query, self.local)
        own = attend(query, rotate(key, self.local), value, scaling, causal=True)
        first_key, first_value = (
            torch.cat([buffer[layer][row : row + 1, :, : self.first].expand(count, -1, -1, -1) for row in self.rows])
            for buffer in (self.cache.keys, self.cache.values)
        )
        if self.move is not None:
            first_key = rotate(first_key, self.move)
        output = merge(attend(query, first_key, first_value, scaling, causal=False), own)
        if self.keeps:
            self.seen[layer] = key, value
        self.store(layer, key, value)
        return output

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write keys, not brought to any position, and values to the cache; shapes as in `attend`."""
        count = self.block.chunks
        key = rotate(key, self.stored)
        for i, row in enumerate(self.rows):
            chunks = slice(i * count, (i + 1) * count)
            # (count, num_kv_heads, width, head_dim) -> (num_kv_heads, count * width, head_dim)
            row_key, row_value = (states[chunks].transpose(0, 1).flatten(1, 2) for states in (key, value))
            self.cache.write(layer, row, self.block.start, row_key, row_value)

    def finish(self) -> None:
        """Count the chunks' tokens as cached, after the last layer."""
        for row in self.rows:
            self.cache.rows[row].length += self.block.width * self.block.chunks
