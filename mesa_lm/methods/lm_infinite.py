"""LM-Infinite: a Lambda-shaped mask with a ceiling of distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from mesa_lm.methods.base import Method, Reach
from mesa_lm.methods.geometry import Band, Extent, Kept
from mesa_lm.methods.parameters import parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LMInfinite(Method):
    """See the last `n_local` keys at their distances and the first `n_global` ones at one distance.

    Source: arXiv 2308.16137; models/lambda_attention.py of github.com/Glaciohound/LM-Infinite.
    """

    name: ClassVar[str] = "lm_infinite"

    n_global: int = parameter(10, "first keys that every query sees", at_least=0)
    n_local: int = parameter(lambda T: T, "last keys that a query sees, itself included", shown="T", at_least=1)
    distance_limit: int = parameter(
        lambda T, method: method.n_local, "distance of the first keys", shown="n_local", at_least=0
    )

    @property
    @override
    def depends_on_length(self) -> bool:
        """Whether the first keys' distance exceeds the window, so that it follows the length of shorter inputs."""
        return self.distance_limit > self.n_local

    @property
    @override
    def kept(self) -> Kept:
        return Kept(self.n_global, self.n_local - 1)

    @override
    def reach(self) -> Reach:
        # The published setting, both equal to T, reaches one position beyond it.
        sizes = f"n_local={self.n_local}, distance_limit={self.distance_limit}"
        return Reach(sizes, max(self.n_local, self.distance_limit))

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return kv_len <= self.n_local

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        local_start = (index - self.n_local + 1).clamp(min=0)
        # As published, a first key is never farther than the input is long.
        limit = min(self.distance_limit, extent.total - 1)
        return (
            Band(local_start, index + 1, index, lambda key: key),
            Band(index * 0, local_start.clamp(max=self.n_global), index * 0 + limit, lambda key: key * 0),
        )
