"""Star Attention: blocks of the context see an anchor and themselves, the query sees everything, at true positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Method, ScaledMethod
from mesa_lm.methods.geometry import Extent, Layout
from mesa_lm.methods.origin import Origin
from mesa_lm.methods.parameters import parameter
from mesa_lm.methods.rope_scaling import NTKScaling, YaRN

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Star(ScaledMethod):
    """Prefill in blocks that see the first block's beginning and themselves; the query sees all, at true positions.

    Mesa's chunks without its weave. Positions grow with the input, so beyond T `scaling` may go with it.

    Source: Star Attention, ICML 2025, arXiv 2411.17116; model.py of github.com/NVIDIA/Star-Attention.
    """

    name: ClassVar[str] = "star"

    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T); the context's blocks are not")
    block_size: int = parameter(lambda T: max(1, T // 4), "tokens b of a context block", shown="T/4", at_least=1)
    anchor_block_size: int = parameter(
        lambda T, method: method.block_size,
        "first tokens A of the context that every block sees",
        shown="block_size",
        at_least=1,
    )
    query_length: int = parameter(
        lambda T: max(1, min(512, T // 4)),
        "last tokens q of a prompt, which see all of it",
        shown="min(512, T/4)",
        at_least=1,
    )
    scaling: Literal["none", "ntk", "yarn"] = parameter("none", "method whose rotary frequencies go with it")
    factor: float | None = parameter(None, "that method's factor; none: its default", at_least=1)

    @override
    def check_together(self) -> None:
        if self.factor is not None and self.scaling == "none":
            raise MethodError("star: factor has no meaning with scaling='none'; leave it out")

    @override
    def check_fit(self) -> None:
        if self.anchor_block_size > self.block_size:
            raise MethodError(
                f"star: anchor_block_size must be at most block_size={self.block_size}, found {self.anchor_block_size}"
            )

    @property
    @override
    def scales_frequencies(self) -> bool:
        return self.scaling != "none"

    @override
    def rope_parameters(self, config: Any, total: int) -> dict[str, Any] | None:
        return self._scaled.rope_parameters(config, total)

    @override
    def longest_input(self, config: Any) -> float:
        return self._scaled.longest_input(config) if self.scales_frequencies else self.train_length

    @property
    def _scaled(self) -> Method:
        """The method whose frequencies are taken."""
        options: dict[str, Any] = {"train_length": self.train_length}
        if self.factor is not None:
            options["factor"] = self.factor
        if self.scaling == "none":
            return Origin()
        return NTKScaling(**options) if self.scaling == "ntk" else YaRN(**options)

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """Tell whether there is one block, which the query's tokens and decoded ones see as any causal model."""
        longest = self.block_size + self.query_length
        return not self.scales_frequencies and kv_len <= (min(longest, self.train_length) if self.log_n else longest)

    @override
    def layout(self, prompt_len: int) -> Layout | None:
        context, block = prompt_len - self.query_length, self.block_size
        if context <= block:
            return None
        middle, rest = divmod(context - block, block)
        return Layout(
            first=block, width=block, middle=middle, narrow=rest, anchor=self.anchor_block_size, numbers_anew=False
        )

    @override
    def query_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return log-n scaling of the query and of decoded tokens, if it is on."""
        scale = ScaledMethod.query_scale(self, index, extent)
        return None if scale is None else scale.where(index >= extent.prompt - self.query_length, 1.0)
