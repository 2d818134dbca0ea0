"""Where chunks begin, and at which positions keys are scored: pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Block(NamedTuple):
    """Adjacent middle chunks of one width: index of the first token, width in tokens, number."""

    start: int
    width: int
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the prefill of one prompt is cut: a first chunk, middle chunks, a last chunk that takes what remains.

    Attributes:
        first: Length of the first chunk in tokens.
        width: Width of the middle chunks in tokens.
        middle: Number of middle chunks of that width.
        narrow: Width of one more, narrower middle chunk after them; 0 for none.
    """

    first: int
    width: int
    middle: int
    narrow: int = 0

    @property
    def last_start(self) -> int:
        """Index of the last chunk's first token."""
        return self.first + self.width * self.middle + self.narrow

    def blocks(self, most_tokens: int) -> Iterator[Block]:
        """Cut the middle chunks into blocks of at most that many tokens, but at least one chunk."""
        per_block = max(1, most_tokens // max(1, self.width))
        for chunk in range(0, self.middle, per_block):
            yield Block(self.first + chunk * self.width, self.width, min(per_block, self.middle - chunk))
        if self.narrow:
            yield Block(self.last_start - self.narrow, self.narrow, 1)


def dynamic_split(prompt_len: int, *, first: int, last: int, margin: int, room: int) -> tuple[int, int]:
    """Choose width and number of the middle chunks.

    Args:
        prompt_len: Tokens to split, larger than first + last.
        first: First chunk length F.
        last: Shortest last chunk L.
        margin: Remainder that the last chunk may take in addition, M_max.
        room: Widest middle chunk: T - F in the paper, T - 2F in the released code.

    Returns:
        Width C and number of middle chunks; C * number is at most prompt_len - first - last.

    Source:
        DynamicSplit of arXiv 2410.15859, algorithm 1.
    """
    rest = prompt_len - last - first
    full, remainder = divmod(rest, room)
    if remainder < margin:
        return room, full
    return rest // (full + 1), full + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Weave:
    """Positions of the keys that one token sees: linear nearby, closer together beyond.

    Attributes:
        last: Index of the token whose distances follow the weave exactly.
        near: Largest distance that stays linear, in tokens.

    Source:
        Weave PE, arXiv 2410.15859, section 4, with key j at position last - W(last - j).
    """

    last: int
    near: int

    @property
    def anchor(self) -> int:
        """First index whose position is linear for certain: last - near."""
        return self.last - self.near

    def position(self, index: Tensor) -> Tensor:
        """Return the positions of the tokens with the given indices; indices from `anchor` on keep theirs.

        Args:
            index: Integer tensor of any shape.

        Returns:
            Tensor of the same shape.
        """
        raise NotImplementedError

    def same_positions(self, other: Weave | None) -> bool:
        """Tell whether another weave gives every index the same position."""
        return self == other


@dataclass(frozen=True, slots=True, kw_only=True)
class Stair(Weave):
    """One step per `width` keys beyond `near`.

    W(d) = d for d <= near, else near + (d - near) / width, rounded up (the paper) or down (the released code).

    Attributes:
        width: Keys per step.
        ceil: Round an incomplete step up, as the paper does; else down.

    Source:
        Stair PE, arXiv 2410.15859, section 4; methods/mesa_extrapolation.py of the released code for `ceil=False`.
    """

    width: int
    ceil: bool

    def position(self, index: Tensor) -> Tensor:
        """See `Weave.position`; integers."""
        beyond = (self.anchor - index).clamp(min=0)
        steps = (beyond + (self.width - 1 if self.ceil else 0)) // self.width
        return index.clamp(min=self.anchor) - steps

    def same_positions(self, other: Weave | None) -> bool:
        """See `Weave.same_positions`: the steps count from the anchor."""
        return isinstance(other, Stair) and (
            (self.anchor, self.width, self.ceil) == (other.anchor, other.width, other.ceil)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamped(Weave):
    """ReRoPE: W(d) = min(d, near)."""

    def position(self, index: Tensor) -> Tensor:
        """See `Weave.position`; integers."""
        return index.clamp(min=self.anchor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaky(Weave):
    """Leaky-ReRoPE: W(d) = near + (d - near) / factor beyond `near`.

    Attributes:
        factor: At least 1.
    """

    factor: float

    def position(self, index: Tensor) -> Tensor:
        """See `Weave.position`; fractions."""
        return index.clamp(min=self.anchor) - (self.anchor - index).clamp(min=0) / self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped(Weave):
    """Self-Extend: t//G - j//G + near - near//G beyond `near`, for the query t = last.

    Attributes:
        group: Tokens G that share a position.
    """

    group: int

    def position(self, index: Tensor) -> Tensor:
        """See `Weave.position`; integers."""
        nearest = self.anchor - self.last // self.group + self.near // self.group
        return index.where(index >= self.anchor, nearest + index // self.group)


class Extent(NamedTuple):
    """How long the input is that a pass belongs to.

    Attributes:
        prompt: Tokens of the row's prompt.
        total: Tokens of the input: the prompt's while it is prefilled, later all keys including the new ones.
    """

    prompt: int
    total: int


class Band(NamedTuple):
    """Keys start <= j < end of some queries, scored at one pair of positions.

    Attributes:
        start: (q_len,) first key of each query; must not decrease.
        end: (q_len,) one past the last key of each query; must not decrease; no key where end <= start.
        query_position: (q_len,) where the queries are scored, integers or fractions.
        key_position: Where keys are scored, from their indices.
        queries: (q_len,) which of the block's queries these are; None for all.
    """

    start: Tensor
    end: Tensor
    query_position: Tensor
    key_position: Callable[[Tensor], Tensor]
    queries: Tensor | None = None
