"""Chunks of a prompt, and bands of keys that queries see: pure arithmetic."""

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
        anchor: How many tokens of the first chunk every middle chunk sees; None: all.
        numbers_anew: Whether middle chunks take the positions that follow the anchor's, wherever they stand; else
            their true ones.
    """

    first: int
    width: int
    middle: int
    narrow: int = 0
    anchor: int | None = None
    numbers_anew: bool = True

    @property
    def seen(self) -> int:
        """Tokens of the first chunk that every middle chunk sees."""
        return self.first if self.anchor is None else self.anchor

    @property
    def last_start(self) -> int:
        """Index of the last chunk's first token."""
        return self.first + self.width * self.middle + self.narrow

    @property
    def chunks(self) -> int:
        """Number of middle chunks, the narrower one included."""
        return self.middle + bool(self.narrow)

    def blocks(self, most_tokens: int, own: range | None = None) -> Iterator[Block]:
        """Cut the middle chunks into blocks of at most that many tokens, but at least one chunk.

        Args:
            most_tokens: See above.
            own: Neighbouring chunks that are wanted; None: all.
        """
        own = range(self.chunks) if own is None else own
        per_block, end = max(1, most_tokens // max(1, self.width)), min(own.stop, self.middle)
        for chunk in range(own.start, end, per_block):
            yield Block(self.first + chunk * self.width, self.width, min(per_block, end - chunk))
        if self.narrow and self.middle in own:
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


class Extent(NamedTuple):
    """How long the input is that a pass belongs to.

    Attributes:
        prompt: Tokens of the row's prompt.
        total: Tokens of the input: the prompt's while it is prefilled, later all keys including the new ones.
        pairs: Pairs of a head's components that are rotated, for methods that place each by itself.
    """

    prompt: int
    total: int
    pairs: int = 0


class Kept(NamedTuple):
    """Cached tokens of an input that any later token may see.

    Attributes:
        first: How many first ones.
        last: How many last ones, the later token itself not included.
    """

    first: int
    last: int


class Noise(NamedTuple):
    """Normal noise on the scores of a band.

    Attributes:
        deviation: Its standard deviation, from the indices of queries and of keys, which broadcast.
        seed: Of the draws.
    """

    deviation: Callable[[Tensor, Tensor], Tensor]
    seed: int


class Band(NamedTuple):
    """Keys start <= j < end of some queries, scored at one pair of positions.

    Attributes:
        start: (q_len,) first key of each query; must not decrease.
        end: (q_len,) one past the last key of each query; must not decrease; no key where end <= start.
        query_position: (q_len,) or, pair by pair, (q_len, pairs) where the queries are scored, integers or fractions.
        key_position: Where keys are scored, from their indices; of the same kind.
        queries: (q_len,) which of the given queries these are, at equal distances; None for all.
        interpolated: A key between two whole positions is scored between its scores there, linearly.
        noise: Added to the scores, in a method's only band; None for none.
        others: Query positions and key positions of the pairs that a head does not select, see
            `Method.selected_by_heads`; None where all are as above.
        unmoved: Whether its keys are known to be scored where they are stored, so that a decoded token need not look.
    """

    start: Tensor
    end: Tensor
    query_position: Tensor
    key_position: Callable[[Tensor], Tensor]
    queries: Tensor | None = None
    interpolated: bool = False
    noise: Noise | None = None
    others: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None
    unmoved: bool = False
