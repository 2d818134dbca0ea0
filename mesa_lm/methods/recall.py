"""Methods whose queries choose what they see of the past: a piece of queries scores keys, and sees what it chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from typing_extensions import override

from mesa_lm.methods.base import TrainedMethod
from mesa_lm.methods.geometry import Extent

if TYPE_CHECKING:
    from torch import Tensor

# Returns the keys start <= j < end of the cache at position 0, (num_kv_heads, end - start, head_dim).
Keys = Callable[[int, int], "Tensor"]


class Recalled(NamedTuple):
    """Keys of the past that a piece chose. All of its queries see them, beside what the method's bands say.

    Attributes:
        key_index: (1 or num_heads, count) which keys, for all heads or for each query head.
        query_position: (q_len,) where the queries are scored.
        key_position: (count,) where the keys are scored; None: all at 0.
    """

    key_index: Tensor
    query_position: Tensor
    key_position: Tensor | None = None


class ContextMemory(NamedTuple):
    """What tokens leave behind in a layer beside keys and values, under a method that `remembers`.

    Attributes:
        received: (num_heads, tokens) attention that the last tokens received so far, float32.
        representatives: (num_heads, blocks, head_dim) what blocks of earlier tokens are found by, float32.
    """

    received: Tensor
    representatives: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallMethod(TrainedMethod):
    """A method whose queries choose keys; each of its `pieces` is one pass and chooses once in every layer.

    Keys are cached at position 0. The method's bands, of which the first holds the queries themselves, say what is
    seen whatever is chosen.
    """

    @property
    def recalled_from(self) -> int:
        """Where queries stand when they choose."""
        return 0

    @property
    def offloaded(self) -> bool:
        """Whether `away` says which keys and values lie in host memory."""
        return False

    def away(self, cached: int) -> range:
        """Return which of the cached tokens lie in host memory; they are seen only where they are chosen.

        Args:
            cached: Tokens in the cache.
        """
        return range(0)

    def recall(self, query: Tensor, keys: Keys, past: int, memory: ContextMemory | None) -> Recalled | None:
        """Let a piece choose.

        Args:
            query: (num_heads, q_len, head_dim) at `recalled_from`.
            keys: Of the cache, those of the piece included.
            past: Tokens before the piece.
            memory: That these have left.

        Returns:
            What it chose; None for nothing.
        """
        raise NotImplementedError

    def remember(
        self, memory: ContextMemory | None, received: Tensor, keys: Keys, past: int, new: int
    ) -> ContextMemory:
        """Return what a piece leaves behind, under a method that `remembers`.

        Args:
            memory: What was left before it.
            received: (num_heads, count) attention that the keys of the first band received from the piece's queries.
            keys: Of the cache, those of the piece included.
            past: Tokens before the piece.
            new: Tokens of the piece.
        """
        raise NotImplementedError

    @override
    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        return index * 0


def in_pieces(new: int, longest: int) -> list[int]:
    """Return the lengths of consecutive pieces of at most `longest` tokens."""
    return [longest] * (new // longest) + [new % longest] * (new % longest > 0)
