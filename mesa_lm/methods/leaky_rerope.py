"""Leaky-ReRoPE: true distances within a window, compressed ones beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from mesa_lm.methods.base import Kind, Reach, WovenMethod
from mesa_lm.methods.parameters import parameter, window_rule
from mesa_lm.methods.weaves import Leaky


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakyReRoPE(WovenMethod):
    """Let distances beyond `window` grow `scaling_factor` times slower.

    Distance w + (d - w) / k from d = w on. Without a given k it follows the prompt, 1/k = (T - w) / (I - w) for I > T
    tokens, so that distances end at T; decoded tokens keep their prompt's k.

    Source: Su 2023, https://kexue.fm/archives/9708; leaky_rerope_patch.py of github.com/bojone/rerope (constant k);
    arXiv 2410.15859, table of weaves (k from the input's length).
    """

    name: ClassVar[str] = "leaky_rerope"
    kind: ClassVar[Kind] = "remapping"

    window: int = parameter(window_rule, "distance w up to which positions are true", shown="min(512, T/4)", at_least=1)
    scaling_factor: float | None = parameter(
        None, "k; none: (I - w) / (T - w) for a prompt of I tokens, at least 1", at_least=1
    )

    @property
    @override
    def depends_on_length(self) -> bool:
        return self.scaling_factor is None

    @override
    def reach(self) -> Reach:
        return Reach(f"window={self.window}", self.window + 1)

    @override
    def longest_input(self, config: Any) -> float:
        """Return where w + (d - w) / k reaches T, for a given k."""
        if self.scaling_factor is None:
            return math.inf
        return self.window + 1 + int(self.scaling_factor * max(0, self.train_length - 1 - self.window))

    @override
    def weave(self, prompt_len: int) -> Leaky:
        factor = self.scaling_factor
        if factor is None:
            factor = max(1.0, (prompt_len - self.window) / max(1, self.train_length - self.window))
        return Leaky(near=self.window, factor=factor)
