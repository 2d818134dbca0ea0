"""Leaky-ReRoPE: true distances within a window, compressed ones beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import ScaledMethod
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import (
    bound_int,
    default_window,
    parameter,
    require_int,
    train_length_of,
    warn_if_beyond,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakyReRoPE(ScaledMethod):
    """Let distances beyond `window` grow `scaling_factor` times more slowly.

    Distance w + (d - w) / k from d = w on. Without a given k it follows the prompt, 1/k = (T - w) / (I - w) for I > T
    tokens, so that distances end at T; decoded tokens keep their prompt's k.

    Source: Su 2023, https://kexue.fm/archives/9708; leaky_rerope_patch.py of github.com/bojone/rerope (constant k);
    arXiv 2410.15859, table of weaves (k from the input's length).
    """

    name: ClassVar[str] = "leaky_rerope"

    window: int | None = parameter(None, "distance w up to which positions are true; None: min(512, T/4)")
    scaling_factor: float | None = parameter(None, "k, at least 1; None: (I - w) / (T - w) for a prompt of I tokens")

    def __post_init__(self) -> None:
        super(LeakyReRoPE, self).__post_init__()
        require_int(self, "window", 1, optional=True)
        factor = self.scaling_factor
        if factor is not None and (isinstance(factor, bool) or not isinstance(factor, int | float) or factor < 1):
            raise MethodError(f"{self.name}: scaling_factor must be a number of at least 1, found {factor!r}")

    def resolve(self, config: Any) -> Self:
        """Fill in T and the window; see `Method.resolve`."""
        train_length = self.train_length or train_length_of(config)
        window = self.window or default_window(train_length)
        warn_if_beyond(self, f"window={window}", window + 1, train_length)
        return replace(self, train_length=train_length, window=window)

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: no distance beyond the window and no query scaled."""
        return kv_len <= min(bound_int(self, "window") + 1, bound_int(self, "train_length"))

    @property
    def depends_on_length(self) -> bool:
        """See `Method.depends_on_length`: k follows the prompt unless it is given."""
        return self.scaling_factor is None

    def longest_input(self, config: Any) -> float:
        """See `Method.longest_input`: with a given k, w + (d - w) / k stays below T."""
        if self.scaling_factor is None:
            return math.inf
        window = bound_int(self, "window")
        return window + 1 + int(self.scaling_factor * max(0, bound_int(self, "train_length") - 1 - window))

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`: query at (t + w (k - 1)) / k and key at j / k give w + (t - j - w) / k."""
        window, factor = bound_int(self, "window"), self._factor(extent)
        far_end = (index - window + 1).clamp(min=0)
        far_query = (index + window * (factor - 1)) / factor
        return (
            Band(far_end, index + 1, index, lambda key: key),
            Band(index * 0, far_end, far_query, lambda key: self.stored_at(key, extent)),
        )

    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return j / k: far keys are by far the most."""
        return index / self._factor(extent)

    def _factor(self, extent: Extent) -> float:
        if self.scaling_factor is not None:
            return self.scaling_factor
        length, window = bound_int(self, "train_length"), bound_int(self, "window")
        return max(1.0, (extent.prompt - window) / max(1, length - window))
