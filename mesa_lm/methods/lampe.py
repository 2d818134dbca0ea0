"""LaMPE: near distances are true, all others are mapped linearly to a length that follows the input's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from typing_extensions import override

from mesa_lm.methods.base import Reach, SharpenedMethod
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import MOST, parameter

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED_LENGTH = 1536


class Sigmoid(NamedTuple):
    """A published fit of the mapped length to the input's: `length` / (1 + exp(-(slope c + shift))) for c tokens.

    Attributes:
        slope: Per token.
        shift: At no tokens.
        length: That very long inputs are mapped to.
        starts_at: Tokens below which the fit is not used, but 1536.
    """

    slope: float
    shift: float
    length: float
    starts_at: int


# remap_uselen of the released code; the fit of "mistral" differs from that of "llama3" in its length alone.
SIGMOIDS = {
    "llama2": Sigmoid(8.673006440952035e-05, -0.648012322406978, 2489.1055552214357, 8192),
    "llama3": Sigmoid(0.00010493097327094324, -2.466638011138158, 6204.409324666837, 8192),
    "mistral": Sigmoid(0.00010493097327094324, -2.466638011138158, 24576, 8192),
    "llama3.1": Sigmoid(4.505261149632588e-05, -2.788576860718702, 82358.52413056031, 0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaMPE(SharpenedMethod):
    """Keep distances below `window`, map all others linearly to `map_length` positions; the first keys stay linear.

    Every score is multiplied by the square of `rope_scale`, short inputs' too.

    Source: LaMPE, ACL 2026, arXiv 2508.02308; llama_cache1.py (three regions) and llama_sw_map.py (two) of
    github.com/scar-on/LaMPE.
    """

    name: ClassVar[str] = "lampe"

    regions: int = parameter(3, "near, mapped, and if 3, a linear one of the farthest pairs", at_least=2, at_most=3)
    window: int = parameter(
        lambda T: max(1, min(512, T // 8)), "distances H that stay true", shown="min(512, T/8)", at_least=1
    )
    initial: int = parameter(
        lambda T: min(200, T // 20),
        "first keys I at least that the last queries see linearly; of three regions",
        shown="min(200, T/20)",
        at_least=0,
    )
    map_length: int | Literal["auto", "llama2", "llama3", "mistral", "llama3.1"] = parameter(
        "auto",
        "positions U that an input is mapped to; auto: min(1536, 3T/8, its length); a name: that model's published fit",
        at_least=1,
    )

    @override
    def reach(self) -> Reach:
        sizes = f"window={self.window}, initial={self.initial}, map_length={self.map_length}"
        return Reach(sizes, self.window + (self.initial if self.regions == 3 else 0) + self.mapped_length(MOST))

    @override
    def longest_input(self, config: Any) -> float:
        """Return where the keys that stay linear, as many as share a position of the map and I, lead to T."""
        if self.regions == 2:
            return math.inf
        mapped = self.mapped_length(MOST)
        return max(2 * self.window, 1 + mapped * (self.train_length - 1 - self.window - self.initial - mapped))

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        longest = self._plain_length
        return self.rope_scale == 1 and kv_len <= (min(longest, self.train_length) if self.log_n else longest)

    @property
    def _plain_length(self) -> int:
        """Longest prompt whose distances are all true."""
        return self.window if self.regions == 2 else 2 * self.window - 1

    def mapped_length(self, length: int) -> int:
        """Return U for an input of `length` tokens."""
        if isinstance(self.map_length, int):
            return self.map_length
        if self.map_length == "auto":
            return max(1, min(PUBLISHED_LENGTH, 3 * self.train_length // 8, length))
        fit = SIGMOIDS[self.map_length]
        if length < fit.starts_at:
            return PUBLISHED_LENGTH
        return int(fit.length / (1 + math.exp(-(fit.slope * length + fit.shift))))

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return near keys, mapped ones, and with three regions those that are linear to the last queries."""
        prompt = extent.prompt
        far_end = (index - self.window + 1).clamp(min=0)
        near = Band(far_end, index + 1, index, lambda key: key)
        if self.regions == 3 and prompt <= self._plain_length:
            return (near._replace(start=far_end * 0),)
        bias = self._bias(prompt, index)
        if self.regions == 2:
            # The map follows the input: with every decoded token all its positions move.
            mapped = self.mapped_length(extent.total if self.map_length == "auto" else prompt)
            to_total = partial(self._map, length=extent.total, mapped=mapped)
            return near, Band(far_end * 0, far_end, to_total(index) + bias, to_total)
        # A decoded token stands where the prompt's last one does, as long as no mapped key stands beyond it.
        place = index.where(index < prompt, (index - self.window).clamp(min=prompt - 1))
        linear_from, linear_bias = self._linear(prompt, bias, index)
        linear_end = (index - linear_from + 1).clamp(min=0)
        to_prompt = partial(self._map, length=prompt, mapped=self.mapped_length(prompt))
        return (
            near,
            Band(linear_end, far_end, to_prompt(place) + bias, to_prompt),
            Band(far_end * 0, linear_end, index - linear_bias, lambda key: key),
        )

    @override
    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return where the prompt's map has a key, from which that of a longer input differs little."""
        if extent.prompt <= self._plain_length:
            return index
        return self._map(index, extent.prompt, self.mapped_length(extent.prompt))

    def _map(self, index: Tensor, length: int, mapped: int) -> Tensor:
        """Return floor(U x / (length - 1)), rounded in float32 as the released code rounds it."""
        place = index.float()
        step = place.new_tensor(1 / max(1, length - 1)) * mapped
        return (step * place).floor().long()

    def _bias(self, prompt: int, like: Tensor) -> int:
        """Return what makes the map meet the near distances: the first mapped one is H - 1."""
        if prompt <= self.window:
            return 0
        return self.window - 1 - int(self._map(like.new_tensor(self.window), prompt, self.mapped_length(prompt)))

    def _linear(self, prompt: int, bias: int, like: Tensor) -> tuple[int, int]:
        """Return the first distance beyond the map, n - r, and what is subtracted from it and from larger ones.

        r is the last key that the map puts where it puts key I; at most n - H, beyond which the released code fails.
        """
        mapped = self.mapped_length(prompt)
        most = self.initial + prompt // mapped + 2  # keys that share a position, and one more
        places = self._map(like.new_tensor(range(self.initial, most)), prompt, mapped)
        last = self.initial + int((places == places[0]).sum()) - 1
        start = max(self.window, prompt - last)
        return start, start - 1 - int(self._map(like.new_tensor(start - 1), prompt, mapped)) - bias
