"""Self-Extend: true distances to neighbours, distances between groups beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typing_extensions import override

from mesa_lm.methods.base import Kind, Reach, WovenMethod
from mesa_lm.methods.parameters import parameter
from mesa_lm.methods.weaves import Grouped


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfExtend(WovenMethod):
    """Score keys from `neighbor_window` on at their group's position.

    Distance t//G - j//G + w - w/G from t - j = w on.

    Source: arXiv 2401.01325; SelfExtend.py of github.com/datamllab/LongLM, where Llama.py has the exact offset and
    the other files the rounded one.
    """

    name: ClassVar[str] = "self_extend"
    kind: ClassVar[Kind] = "remapping"

    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T)")
    group_size: int = parameter(8, "tokens G that share a position beyond the neighbours", at_least=1)
    neighbor_window: int = parameter(
        lambda T: max(1, min(1024, T // 4)), "distances w that stay true", shown="min(1024, T/4)", at_least=1
    )
    offset: Literal["exact", "floor"] = parameter("exact", "of group positions: w - w/G exactly, or with w//G")

    @property
    @override
    def depends_on_length(self) -> bool:
        return False

    @override
    def reach(self) -> Reach:
        return Reach(f"neighbor_window={self.neighbor_window}", self.neighbor_window)

    @override
    def longest_input(self, config: Any) -> float:
        """Return where the farthest group reaches position T."""
        groups = self.train_length - math.ceil(self.weave(0).offset)
        return max(self.neighbor_window, groups * self.group_size)

    @override
    def weave(self, prompt_len: int) -> Grouped:
        window, group = self.neighbor_window, self.group_size
        offset = window - (window / group if self.offset == "exact" else window // group)
        return Grouped(near=window - 1, group=group, offset=offset)
