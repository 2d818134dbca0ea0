"""Dynamic NTK scaling: a rotary base that grows with each input's own length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from mesa_lm.methods.base import ScaledMethod
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicNTK(ScaledMethod):
    """Multiply the rotary base by (factor n / T - factor + 1)^(d / (d - 2)) for an input of n > T tokens.

    Each row follows its own length, and its cached keys follow with every token. transformers takes the longest row
    of the batch, never goes back, and leaves cached keys at the base they were cached with; `cached_keys="stale"`
    reproduces the last, which changes what is generated.

    Source: emozilla 2023, as in arXiv 2309.00071, section 3.3; rope type "dynamic" of transformers.
    """

    name: ClassVar[str] = "dynamic_ntk"

    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T)")
    factor: float = parameter(2.0, "how fast the base grows; not the ratio n / T", at_least=1)
    cached_keys: Literal["current", "stale"] = parameter("current", "base of cached keys: the input's or their own")

    @property
    @override
    def has_bands(self) -> bool:
        """Whether keys are stored unrotated, to be scored at the input's base; stale ones are stored rotated."""
        return self.cached_keys == "current"

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return kv_len <= self.train_length

    @override
    def rope_parameters(self, config: Any, total: int) -> dict[str, Any]:
        return {
            "rope_type": "dynamic",
            "factor": float(self.factor),
            "original_max_position_embeddings": self.train_length,
        }

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return one band, all earlier keys at their true distances."""
        return (Band(index * 0, index + 1, index, lambda key: key),)

    @override
    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return 0 for every key: the angle of each changes with every token."""
        return index * 0
