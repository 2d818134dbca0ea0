"""LM-Infinite: a Lambda-shaped mask with a ceiling of distances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import bound_int, parameter, require_int, train_length_of, warn_if_beyond

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LMInfinite(Method):
    """See the last `n_local` keys at their distances and the first `n_global` ones at one distance.

    Source: arXiv 2308.16137; models/lambda_attention.py of github.com/Glaciohound/LM-Infinite.
    """

    name: ClassVar[str] = "lm_infinite"

    n_global: int = parameter(10, "first keys that every query sees")
    n_local: int | None = parameter(None, "last keys that a query sees, itself included; None: T")
    distance_limit: int | None = parameter(None, "distance of the first keys; None: n_local")

    def __post_init__(self) -> None:
        require_int(self, "n_global", 0)
        require_int(self, "n_local", 1, optional=True)
        require_int(self, "distance_limit", 0, optional=True)

    def resolve(self, config: Any) -> Self:
        """Fill in the window and the distance; see `Method.resolve`."""
        train_length = train_length_of(config)
        n_local = self.n_local or train_length
        limit = n_local if self.distance_limit is None else self.distance_limit
        # The published setting, both equal to T, reaches one position beyond it.
        warn_if_beyond(self, f"n_local={n_local}, distance_limit={limit}", max(n_local, limit), train_length)
        return replace(self, n_local=n_local, distance_limit=limit)

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: all keys are local."""
        return kv_len <= bound_int(self, "n_local")

    @property
    def depends_on_length(self) -> bool:
        """See `Method.depends_on_length`: a distance within the window is shorter than any input that uses it."""
        return bound_int(self, "distance_limit") > bound_int(self, "n_local")

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`."""
        local_start = (index - bound_int(self, "n_local") + 1).clamp(min=0)
        # As published, a first key is never farther than the input is long.
        limit = min(bound_int(self, "distance_limit"), extent.total - 1)
        return (
            Band(local_start, index + 1, index, lambda key: key),
            Band(index * 0, local_start.clamp(max=self.n_global), index * 0 + limit, lambda key: key * 0),
        )
