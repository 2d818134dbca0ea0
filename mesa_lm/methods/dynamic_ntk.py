"""Dynamic NTK scaling: a rotary base that grows with each input's own length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import (
    bound_int,
    parameter,
    require_choice,
    require_int,
    require_number,
    train_length_of,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicNTK(Method):
    """Multiply the rotary base by (factor n / T - factor + 1)^(d / (d - 2)) for an input of n > T tokens.

    Each row follows its own length, and its cached keys follow with every token. transformers takes the longest row
    of the batch, never goes back, and leaves cached keys at the base they were cached with; `cached_keys="stale"`
    reproduces the last, which changes what is generated.

    Source: emozilla 2023, as in arXiv 2309.00071, section 3.3; rope type "dynamic" of transformers.
    """

    name: ClassVar[str] = "dynamic_ntk"
    block_len: ClassVar[int] = 4096  # all keys are moved for each block of queries

    train_length: int | None = parameter(None, "training length T in tokens; None: from the model's config")
    factor: float = parameter(2.0, "how fast the base grows; not the ratio n / T")
    cached_keys: Literal["current", "stale"] = parameter("current", "base of cached keys: the input's or their own")

    def __post_init__(self) -> None:
        require_int(self, "train_length", 1, optional=True)
        require_number(self, "factor", 1)
        require_choice(self, "cached_keys", ("current", "stale"))

    @property
    def has_bands(self) -> bool:
        """Whether keys are stored unrotated, to be scored at the input's base; stale ones are stored rotated."""
        return self.cached_keys == "current"

    def resolve(self, config: Any) -> Self:
        """Fill in T; see `Method.resolve`."""
        return replace(self, train_length=self.train_length or train_length_of(config))

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: the base is the model's own up to T."""
        return kv_len <= bound_int(self, "train_length")

    def rope_parameters(self, config: Any, total: int) -> dict[str, Any]:
        """See `Method.rope_parameters`."""
        return {
            "rope_type": "dynamic",
            "factor": float(self.factor),
            "original_max_position_embeddings": self.train_length,
        }

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`: one band, all earlier keys at their true distances."""
        return (Band(index * 0, index + 1, index, lambda key: key),)

    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return 0 for every key: the angle of each changes with every token."""
        return index * 0
