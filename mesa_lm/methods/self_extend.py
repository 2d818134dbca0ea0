"""Self-Extend: true distances to neighbours, distances between groups beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mesa_lm.methods.base import ScaledMethod
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import (
    bound_int,
    parameter,
    require_choice,
    require_int,
    train_length_of,
    warn_if_beyond,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfExtend(ScaledMethod):
    """Score keys `neighbor_window` or more tokens away at their group's position.

    Distance t//G - j//G + w - w/G from t - j = w on.

    Source: arXiv 2401.01325; SelfExtend.py of github.com/datamllab/LongLM, where Llama.py has the exact offset and
    the other files the rounded one.
    """

    name: ClassVar[str] = "self_extend"

    group_size: int = parameter(8, "tokens G that share a position beyond the neighbours")
    neighbor_window: int | None = parameter(None, "distances w that stay true; None: min(1024, T/4)")
    offset: Literal["exact", "floor"] = parameter("exact", "of group positions: w - w/G exactly, or with w//G")
    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T)")

    def __post_init__(self) -> None:
        super(SelfExtend, self).__post_init__()
        require_int(self, "group_size", 1)
        require_int(self, "neighbor_window", 1, optional=True)
        require_choice(self, "offset", ("exact", "floor"))

    def resolve(self, config: Any) -> Self:
        """Fill in T and the window; see `Method.resolve`."""
        train_length = self.train_length or train_length_of(config)
        window = self.neighbor_window or max(1, min(1024, train_length // 4))
        warn_if_beyond(self, f"neighbor_window={window}", window, train_length)
        return replace(self, train_length=train_length, neighbor_window=window)

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: all keys are neighbours and no query is scaled."""
        longest = bound_int(self, "train_length") if self.log_n else kv_len
        return kv_len <= min(bound_int(self, "neighbor_window"), longest)

    def longest_input(self, config: Any) -> float:
        """See `Method.longest_input`: the farthest group stays below position T."""
        groups = bound_int(self, "train_length") - math.ceil(self._offset)
        return max(bound_int(self, "neighbor_window"), groups * self.group_size)

    @property
    def _offset(self) -> float:
        window, group = bound_int(self, "neighbor_window"), self.group_size
        return window - (window / group if self.offset == "exact" else window // group)

    @property
    def depends_on_length(self) -> bool:
        """See `Method.depends_on_length`."""
        return False

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`."""
        window, group = bound_int(self, "neighbor_window"), self.group_size
        far_end = (index - window + 1).clamp(min=0)
        return (
            Band(far_end, index + 1, index, lambda key: key),
            Band(index * 0, far_end, index // group + self._offset, lambda key: key // group),
        )

    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return j // G: keys beyond the neighbours are by far the most."""
        return index // self.group_size
