"""ReRoPE: true distances within a window, one and the same beyond."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mesa_lm.methods.base import ScaledMethod
from mesa_lm.methods.geometry import Band
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

    from mesa_lm.methods.geometry import Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class ReRoPE(ScaledMethod):
    """Score every key `window` or more tokens away as exactly `window` away.

    Source: Su 2023, https://kexue.fm/archives/9708; rerope_patch.py of github.com/bojone/rerope.
    """

    name: ClassVar[str] = "rerope"

    window: int | None = parameter(None, "largest distance w; None: min(512, T/4)")

    def __post_init__(self) -> None:
        super(ReRoPE, self).__post_init__()
        require_int(self, "window", 1, optional=True)

    def resolve(self, config: Any) -> Self:
        """Fill in T and the window; see `Method.resolve`."""
        train_length = self.train_length or train_length_of(config)
        window = self.window or default_window(train_length)
        warn_if_beyond(self, f"window={window}", window + 1, train_length)
        return replace(self, train_length=train_length, window=window)

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: no distance beyond the window and no query scaled."""
        return kv_len <= bound_int(self, "window") + 1 and kv_len <= bound_int(self, "train_length")

    @property
    def depends_on_length(self) -> bool:
        """See `Method.depends_on_length`."""
        return False

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`: distance min(t - j, window)."""
        window = bound_int(self, "window")
        far_end = (index - window + 1).clamp(min=0)
        return (
            Band(far_end, index + 1, index, lambda key: key),
            Band(index * 0, far_end, index * 0 + window, lambda key: key * 0),
        )

    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return 0 for every key: far keys, by far the most, are not rotated."""
        return index * 0
