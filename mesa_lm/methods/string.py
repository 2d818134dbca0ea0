"""STRING: distances from some length on are shifted back, onto positions that were frequent in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Reach, SharpenedMethod
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class String(SharpenedMethod):
    """Score keys `shift` or more tokens away as if they were `shift - local_value` tokens nearer.

    Distance d - S + W from d = S on. Every score is multiplied by the square of `rope_scale`, short inputs' too.

    Source: STRING, ICLR 2025, arXiv 2410.18745; string_for_llama.py of github.com/HKUNLP/STRING.
    """

    name: ClassVar[str] = "string"

    shift: int = parameter(
        lambda T: max(1, int(0.33 * T)), "first distance S that is shifted", shown="0.33T", at_least=1
    )
    local_value: int = parameter(
        lambda T: min(128, T // 16), "distance W at which it is scored", shown="min(128, T/16)", at_least=0
    )

    @override
    def check_fit(self) -> None:
        if self.local_value > self.shift:
            raise MethodError(f"string: local_value must be at most shift={self.shift}, found {self.local_value}")

    @property
    @override
    def depends_on_length(self) -> bool:
        return False

    @override
    def reach(self) -> Reach:
        return Reach(f"shift={self.shift}", self.shift)

    @override
    def longest_input(self, config: Any) -> float:
        """Return where the farthest key, shifted back, reaches T."""
        return max(self.shift, self.train_length + self.shift - self.local_value)

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        longest = min(self.shift, self.train_length) if self.log_n else self.shift
        return self.rope_scale == 1 and kv_len <= longest

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return near keys and shifted ones; keys keep their positions, queries have two."""
        near_start = (index - self.shift + 1).clamp(min=0)
        return (
            Band(near_start, index + 1, index, lambda key: key),
            Band(index * 0, near_start, index - self.shift + self.local_value, lambda key: key),
        )
