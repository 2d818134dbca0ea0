"""One pass of tokens through the model: each group of layers has the attention that serves it.

A pass is handed to the model's attention layers, which give it queries and keys without positions; it brings them to
their positions, stores the keys and attends. Several rows of the batch, and several chunks of a row, go through the
model as rows of one pass.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Protocol

import torch
from torch import Tensor

from mesa_lm.attention.cache import WovenCache
from mesa_lm.attention.encoding import Angles, rotate
from mesa_lm.attention.kernels import Scoring
from mesa_lm.attention.layer_groups import LayerGroup, Layers
from mesa_lm.methods.geometry import Extent


@dataclass(frozen=True, slots=True)
class NewTokens:
    """Tokens that a pass appends to rows of the cache.

    Attributes:
        cache: Holds the rows' earlier tokens.
        rows: The rows.
        count: New tokens of each.
        totals: For each row the tokens of the input that the new ones belong to, as in `Extent`.
    """

    cache: WovenCache
    rows: list[int]
    count: int
    totals: list[int]

    def extents(self) -> list[Extent]:
        """Return for each row the extent of its input."""
        prompts = (self.cache.rows[row].prompt_len for row in self.rows)
        return [Extent(prompt, total) for prompt, total in zip(prompts, self.totals, strict=True)]

    def neighbours(self, kinds: Sequence[Hashable] | None = None) -> list[slice]:
        """Cut the rows into runs that one kernel call can serve: neighbours in the cache with equally many tokens.

        Args:
            kinds: For each row what its run must have in common besides; None: nothing.

        Returns:
            For each run its rows, counted within the pass.
        """
        kinds = kinds or [None] * len(self.rows)
        states = [self.cache.rows[row] for row in self.rows]
        marks = [
            (state.length, state.dropped, kinds[i], row - i)
            for i, (row, state) in enumerate(zip(self.rows, states, strict=True))
        ]
        counts = [len(list(run)) for _, run in groupby(marks)]
        return [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]

    def count_as_cached(self) -> None:
        """Note that keys and values of the new tokens are in the cache."""
        for row in self.rows:
            state = self.cache.rows[row]
            state.length += self.count
            state.dropped, state.dropping = state.dropped + state.dropping, 0
            if state.recent_len != state.length:
                state.recent_len = -1


class GroupPass(Protocol):
    """A pass through the layers of one group.

    Attributes:
        positions: (rows, new) where it takes queries and keys, on the CPU; None: it takes them without positions.
    """

    @property
    def positions(self) -> Tensor | None:
        """See above."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Store keys and values and return the attention output.

        Args:
            layer: Layer index.
            query: (rows, num_heads, new, head_dim), entered into the layer's encoding, at `positions`.
            key: (rows, num_kv_heads, new, head_dim), likewise.
            value: Like key.
            scoring: How the scores are computed.

        Returns:
            (rows, num_heads, new, head_dim).
        """


class ModelPass:
    """A pass through all layers of a model.

    Attributes:
        positions: (rows, new) where all layers want queries and keys, so that the model itself may bring them there;
            None: at none, or not all at the same.
        is_rotated: Whether the model does so; who runs the pass sets it.
    """

    def __init__(self, layers: Layers, tokens: NewTokens, pass_of: Callable[[LayerGroup], GroupPass]) -> None:
        """Prepare the pass.

        Args:
            layers: The model's layers.
            tokens: What the pass appends.
            pass_of: Returns the pass through one group of layers.
        """
        self._layers, self._tokens = layers, tokens
        self._passes = [pass_of(group) for group in layers.groups]
        self._angles: dict[int, Angles] = {}
        first, *others = [group_pass.positions for group_pass in self._passes]
        alike = first is not None and all(other is not None and torch.equal(other, first) for other in others)
        self.positions = first if alike else None
        self.is_rotated = False

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Do what `GroupPass.attend` does, with queries, keys and values as the model's layer has them."""
        number = self._layers.group_of[layer]
        encoding, group_pass = self._layers.groups[number].encoding, self._passes[number]
        query, key, entered = encoding.enter(query, key, value, scoring.scale)
        if group_pass.positions is not None and not self.is_rotated:
            if number not in self._angles:
                self._angles[number] = encoding.angles(group_pass.positions)
            query, key = rotate(query, self._angles[number]), rotate(key, self._angles[number])
        return encoding.leave(group_pass.attend(layer, query, key, entered, scoring), value)

    def finish(self) -> None:
        """Count the new tokens as cached, after the last layer."""
        self._tokens.count_as_cached()
