"""Weaves: what becomes of the distance between a query and a key, true nearby and closer together beyond.

A weave replaces the distance d by W(d). Every weave here scores far keys at Q(t) - K(j) for the query at index t and
the key at index j, so that one position of each serves all far pairs (Stair: of one residue class of queries). Methods
over full attention use both for every query; Mesa uses them for one token, to place the keys for all its queries.

Source: Weave PE, arXiv 2410.15859, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from typing_extensions import override

from mesa_lm.methods.geometry import Band

if TYPE_CHECKING:
    from torch import Tensor


class Far(NamedTuple):
    """Where far pairs of some queries are scored.

    Attributes:
        query_position: (queries,) Q(t), integers or fractions.
        key_position: K, from indices of keys to their positions.
        queries: (queries,) which of the given queries these are; None for all.
    """

    query_position: Tensor
    key_position: Callable[[Tensor], Tensor]
    queries: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weave:
    """Base of the weaves.

    Attributes:
        near: N, the largest distance that is true for certain.
    """

    near: int

    @property
    def far_from(self) -> int:
        """The smallest distance that is scored as far."""
        return self.near

    @property
    def true_length(self) -> int:
        """Most tokens of an input in which every distance is true."""
        return self.near + 1

    def far(self, index: Tensor) -> Iterator[Far]:
        """Yield where far pairs are scored.

        Args:
            index: (q_len,) indices of queries, each larger than `far_from`.
        """
        raise NotImplementedError

    def stored_at(self, index: Tensor) -> Tensor:
        """Return K(j), where most queries score a far key."""
        raise NotImplementedError

    def placement(self, last: int) -> tuple[object, ...]:
        """Return what the positions of `Placement` depend on, for the token at index `last`."""
        return (last, self)

    def bands(self, index: Tensor) -> tuple[Band, ...]:
        """Return the bands of a method over full attention: near keys at their distances, far ones woven.

        Args:
            index: (q_len,) consecutive indices of the queries.
        """
        far_end = (index - self.far_from + 1).clamp(min=0)
        bands = [Band(far_end, index + 1, index, lambda key: key)]
        for query_position, key_position, queries in self.far(index):
            end = far_end if queries is None else far_end[queries]
            bands.append(Band(end * 0, end, query_position, key_position, queries))
        return tuple(bands)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stair(Weave):
    """W(d) = N + (d - N) / width beyond N, rounded up (the paper) or down (the released code).

    With t - N = a width + r, the distance N + ceil((t - N - j) / width) is that of a query at N + a and a key at
    floor((j - r) / width): one placement of the keys for all queries with the same r.

    Attributes:
        width: Keys per step, E.
        ceil: Round an incomplete step up; else down.

    Source:
        Stair PE, arXiv 2410.15859, section 4; methods/mesa_extrapolation.py of the released code for `ceil=False`.
    """

    width: int
    ceil: bool = True

    @property
    @override
    def far_from(self) -> int:
        return self.near + 1

    @property
    @override
    def true_length(self) -> int:
        return self.near + 2  # the first step is one key wide where it is rounded up

    @override
    def far(self, index: Tensor) -> Iterator[Far]:
        steps, residues = (index - self.near) // self.width, (index - self.near) % self.width
        is_far = index > self.near
        for residue in residues[is_far].unique().tolist():
            queries = (is_far & (residues == residue)).nonzero()[:, 0]
            yield Far(self.near + steps[queries], partial(self._steps_of_keys, residue), queries)

    def _steps_of_keys(self, residue: int, key: Tensor) -> Tensor:
        return (key - residue + (0 if self.ceil else self.width - 1)) // self.width

    @override
    def stored_at(self, index: Tensor) -> Tensor:
        """Return floor(j / E), at most one step from where any query scores a far key."""
        return index // self.width

    @override
    def placement(self, last: int) -> tuple[object, ...]:
        """Return what positions depend on: the steps count from the last index that keeps its position."""
        return (last - self.near, self.width, self.ceil)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamped(Weave):
    """W(d) = min(d, N).

    Source: ReRoPE, Su 2023, https://kexue.fm/archives/9708.
    """

    @override
    def far(self, index: Tensor) -> Iterator[Far]:
        yield Far(index * 0 + self.near, lambda key: key * 0)

    @override
    def stored_at(self, index: Tensor) -> Tensor:
        """Return 0 for every key: far keys, by far the most, are not rotated."""
        return index * 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaky(Weave):
    """W(d) = N + (d - N) / factor beyond N: a query at (t + N (factor - 1)) / factor and a key at j / factor.

    Attributes:
        factor: k, at least 1.

    Source: Leaky-ReRoPE, Su 2023, https://kexue.fm/archives/9708.
    """

    factor: float

    @override
    def far(self, index: Tensor) -> Iterator[Far]:
        yield Far((index + self.near * (self.factor - 1)) / self.factor, self.stored_at)

    @override
    def stored_at(self, index: Tensor) -> Tensor:
        return index / self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped(Weave):
    """W(d) = floor(t / G) - floor(j / G) + offset beyond N.

    Attributes:
        group: Tokens G that share a position.
        offset: What makes groups meet the near distances: N' - N' / G of the near window N'.

    Source: Self-Extend, arXiv 2401.01325, equation 4.
    """

    group: int
    offset: float

    @property
    @override
    def far_from(self) -> int:
        return self.near + 1

    @override
    def far(self, index: Tensor) -> Iterator[Far]:
        yield Far(index // self.group + self.offset, self.stored_at)

    @override
    def stored_at(self, index: Tensor) -> Tensor:
        return index // self.group


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Positions of the keys that one token sees: key j stands at last - W(last - j), for any query to score.

    Attributes:
        last: Index of the token whose distances follow the weave exactly.
        weave: W.

    Source: arXiv 2410.15859, section 4.
    """

    last: int
    weave: Weave

    @property
    def near(self) -> int:
        """Largest distance from `last` that is true for certain."""
        return self.weave.near

    def position(self, index: Tensor) -> Tensor:
        """Return the positions of the tokens with the given indices; indices from last - near on keep theirs.

        Args:
            index: Integer tensor of any shape.

        Returns:
            Tensor of the same shape, integers or fractions.
        """
        if self.last < self.weave.far_from:
            return index
        (far,) = self.weave.far(index.new_tensor([self.last]))
        woven = self.last - (far.query_position - far.key_position(index))
        return index.where(index > self.last - self.weave.far_from, woven)

    def same_positions(self, other: Placement | None) -> bool:
        """Tell whether another placement gives every index the same position."""
        return other is not None and self.weave.placement(self.last) == other.weave.placement(other.last)
