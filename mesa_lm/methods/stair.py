"""Stair PE over full attention: true distances nearby, one step per several tokens beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typing_extensions import override

from mesa_lm.methods.base import Kind, WovenMethod
from mesa_lm.methods.parameters import parameter, window_rule
from mesa_lm.methods.weaves import Stair

PUBLISHED_WIDTH = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class StairPE(WovenMethod):
    """Let distances beyond `extrapolated_position` grow by one per `extrapolated_width` tokens, for every query.

    Source: Stair PE, arXiv 2410.15859, section 4, without its chunk-based attention.
    """

    name: ClassVar[str] = "stair"
    kind: ClassVar[Kind] = "remapping"

    extrapolated_position: int = parameter(
        window_rule, "distance N up to which positions are true", shown="min(512, T/4)", at_least=0
    )
    extrapolated_width: int | Literal["auto"] = parameter(
        "auto", "tokens per step E; auto: 50, or the smallest that keeps a prompt's distances inside T", at_least=1
    )

    @property
    @override
    def depends_on_length(self) -> bool:
        return self.extrapolated_width == "auto"

    @override
    def longest_input(self, config: Any) -> float:
        """Return where the farthest step reaches position T, for a given E."""
        if self.extrapolated_width == "auto":
            return math.inf
        near = self.extrapolated_position
        return near + 1 + self.extrapolated_width * max(0, self.train_length - 1 - near)

    @override
    def weave(self, prompt_len: int) -> Stair:
        near = self.extrapolated_position
        if self.extrapolated_width != "auto":
            return Stair(near=near, width=self.extrapolated_width)
        room = max(1, self.train_length - 1 - near)
        return Stair(near=near, width=max(PUBLISHED_WIDTH, -(-(prompt_len - 1 - near) // room)))
