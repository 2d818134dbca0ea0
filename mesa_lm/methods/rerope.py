"""ReRoPE: true distances within a window, one and the same beyond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from mesa_lm.methods.base import Kind, Reach, WovenMethod
from mesa_lm.methods.parameters import parameter, window_rule
from mesa_lm.methods.weaves import Clamped


@dataclass(frozen=True, slots=True, kw_only=True)
class ReRoPE(WovenMethod):
    """Score keys `window` or more tokens away as exactly `window` away.

    Source: Su 2023, https://kexue.fm/archives/9708; rerope_patch.py of github.com/bojone/rerope.
    """

    name: ClassVar[str] = "rerope"
    kind: ClassVar[Kind] = "remapping"

    window: int = parameter(window_rule, "largest distance w", shown="min(512, T/4)", at_least=1)

    @property
    @override
    def depends_on_length(self) -> bool:
        return False

    @override
    def reach(self) -> Reach:
        return Reach(f"window={self.window}", self.window + 1)

    @override
    def weave(self, prompt_len: int) -> Clamped:
        return Clamped(near=self.window)
