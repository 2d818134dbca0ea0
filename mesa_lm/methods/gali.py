"""GALI: positions within T, where far tokens stand between whole ones and their scores are interpolated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Kind, ScaledMethod
from mesa_lm.methods.geometry import Band, Extent, Noise
from mesa_lm.methods.parameters import parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GALI(ScaledMethod):
    """Give all keys new positions within T for every piece: far ones in groups that share a unit, the last alone.

    After a piece there are m > T tokens; groups have g = ceil((m - w) / (T - w)). A key between two whole positions is
    scored between its scores there.

    Source: GALI, EMNLP 2025, arXiv 2502.02659; help_funcs.py and patches/Llama.py of github.com/adlnlp/Gali.
    """

    name: ClassVar[str] = "gali"
    kind: ClassVar[Kind] = "remapping"

    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T)")
    local_window: int = parameter(
        lambda T: min(128, T // 16),
        "last tokens w that stand one apart for certain",
        shown="min(128, T/16)",
        at_least=0,
    )
    chunk_size: int = parameter(
        lambda T: max(1, min(3000, 3 * T // 2)),
        "tokens of a piece of a prompt, which share positions",
        shown="min(3000, 3T/2)",
        at_least=1,
    )
    chunk_growth: float | None = parameter(
        None,
        "tokens of a piece beyond T as a share of those before it, in place of chunk_size",
        at_least=0.001,
        at_most=1,
    )
    interpolate_logits: bool = parameter(
        True, "interpolate scores between whole positions; else rotate by fractions, queries too"
    )
    noise: float = parameter(
        0.0,
        "standard deviation of noise on interpolated scores, times the distance over m; the code has 1",
        at_least=0,
        at_most=1000,
    )
    seed: int = parameter(0, "of the noise", at_least=0)

    @override
    def check_together(self) -> None:
        if self.noise and not self.interpolate_logits:
            raise MethodError("gali: noise is added to interpolated scores; set interpolate_logits or leave out noise")

    @override
    def check_fit(self) -> None:
        if self.local_window >= self.train_length:
            raise MethodError(
                f"gali: local_window must be below train_length={self.train_length}, found {self.local_window}"
            )

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return kv_len <= self.train_length

    @property
    @override
    def is_noisy(self) -> bool:
        return self.noise > 0

    @override
    def pieces(self, cached: int, new: int) -> list[int]:
        """Return T tokens, however they are cut, and the pieces after them."""
        pieces, done = list[int](), cached
        while done < cached + new:
            if done < self.train_length:
                piece = min(self.chunk_size, self.train_length - done)
            else:
                piece = self.chunk_size if self.chunk_growth is None else max(1, int(done * self.chunk_growth))
            pieces.append(min(piece, cached + new - done))
            done += pieces[-1]
        return pieces

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return one band: all earlier keys, where a piece that ends with the last of the queries places them."""
        count, length, last = int(index[-1]) + 1, self.train_length, self.local_window
        group = -((last - count) // (length - last))
        shared = -((length - count) // max(1, group - 1))  # units that hold several tokens each
        first = count - (length - shared)  # that stands alone

        def position(token: Tensor) -> Tensor:
            between = token // group + (token % group) / group
            return between.where(token < first, token - first + shared)

        if count <= length:
            return (Band(index * 0, index + 1, index, lambda key: key),)
        if not self.interpolate_logits:
            return (Band(index * 0, index + 1, position(index), position),)

        def deviation(query: Tensor, key: Tensor) -> Tensor:
            place = position(key)
            return self.noise * (query - key) / count * (place != place.ceil())

        noise = Noise(deviation, self.seed) if self.noise else None
        return (Band(index * 0, index + 1, position(index).ceil(), position, interpolated=True, noise=noise),)

    @override
    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return 0 for every key: the position of each changes with every piece."""
        return index * 0
