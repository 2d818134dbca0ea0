"""Stair PE over full attention: true distances nearby, one step per several tokens beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mesa_lm.methods.base import ScaledMethod
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import bound_int, default_window, parameter, require_int, train_length_of

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED_WIDTH = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class StairPE(ScaledMethod):
    """Let distances beyond `extrapolated_position` grow by one per `extrapolated_width` tokens, for every query.

    Source: Stair PE, arXiv 2410.15859, section 4, without its chunk-based attention.
    """

    name: ClassVar[str] = "stair"
    block_len: ClassVar[int] = 4096  # its queries fall into extrapolated_width groups; these should not be tiny

    extrapolated_position: int | None = parameter(
        None, "distance N up to which positions are true; None: min(512, T/4)"
    )
    extrapolated_width: int | Literal["auto"] = parameter(
        "auto", "tokens per step E; auto: 50, or the smallest that keeps a prompt's distances inside T"
    )

    def __post_init__(self) -> None:
        super(StairPE, self).__post_init__()
        require_int(self, "extrapolated_position", 0, optional=True)
        if self.extrapolated_width != "auto":
            require_int(self, "extrapolated_width", 1)

    def resolve(self, config: Any) -> Self:
        """Fill in T and N; see `Method.resolve`."""
        train_length = self.train_length or train_length_of(config)
        near = self.extrapolated_position
        return replace(
            self,
            train_length=train_length,
            extrapolated_position=default_window(train_length) if near is None else near,
        )

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: no distance beyond N + 1, the first step, and no query scaled."""
        longest = bound_int(self, "train_length") if self.log_n else kv_len
        return kv_len <= min(bound_int(self, "extrapolated_position") + 2, longest)

    def longest_input(self, config: Any) -> float:
        """See `Method.longest_input`: with a given E, the farthest step stays below position T."""
        if self.extrapolated_width == "auto":
            return math.inf
        near = bound_int(self, "extrapolated_position")
        return near + 1 + self.extrapolated_width * max(0, bound_int(self, "train_length") - 1 - near)

    @property
    def depends_on_length(self) -> bool:
        """See `Method.depends_on_length`: the width follows the prompt if it is "auto"."""
        return self.extrapolated_width == "auto"

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`.

        With t - N = a E + r, the distance N + ceil((t - N - j) / E) is that of a query at N + a and a key at
        floor((j - r) / E): one assignment of key positions for all queries with the same r.
        """
        near, width = bound_int(self, "extrapolated_position"), self._width(extent)
        bands = [Band((index - near).clamp(min=0), index + 1, index, lambda key: key)]
        far = index > near
        residues = (index - near) % width
        for residue in range(width):
            queries = (far & (residues == residue)).nonzero()[:, 0]
            if len(queries):
                own = index[queries]
                bands.append(
                    Band(
                        own * 0,
                        own - near,
                        near + (own - near) // width,
                        lambda key, residue=residue: (key - residue) // width,  # type: ignore[misc]
                        queries,
                    )
                )
        return tuple(bands)

    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return floor(j / E), at most one step from where any query scores a far key."""
        return index // self._width(extent)

    def _width(self, extent: Extent) -> int:
        if self.extrapolated_width != "auto":
            return self.extrapolated_width
        near = bound_int(self, "extrapolated_position")
        room = max(1, bound_int(self, "train_length") - 1 - near)
        return max(PUBLISHED_WIDTH, -(-(extent.prompt - 1 - near) // room))
