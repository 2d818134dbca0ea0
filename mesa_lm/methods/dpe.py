"""DPE: beyond a window, distances between groups of tokens, with groups of a size of their own for every frequency."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Reach, ScaledMethod
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import MOST, parameter

if TYPE_CHECKING:
    from torch import Tensor

# Found by the authors for one model and length each, with window=1024: of 8 groups, from the fastest pairs on.
CALIBRATED = {
    "llama3": (2, 8, 2, 8, 32, 32, 32, 4),
    "mistral": (4, 16, 2, 16, 32, 16, 16, 2),
    "llama3.1": (2, 32, 32, 2, 2, 2, 2, 1),
    "qwen2.5": (2, 16, 8, 8, 32, 8, 2, 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DPE(ScaledMethod):
    """Score keys `window` or more tokens away at their group's position, with a group size per rotary frequency.

    Distance t//s - j//s + w - w//s from t - j = w on, s that of the pair of components.

    Source: DPE, COLM 2025, arXiv 2504.18857; dpe_for_llama.py of github.com/LuLuLuyi/DPE.
    """

    name: ClassVar[str] = "dpe"
    places_pairs: ClassVar[bool] = True

    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T)")
    window: int = parameter(
        lambda T: max(1, min(1024, T // 8)), "distances w that stay true", shown="min(1024, T/8)", at_least=1
    )
    scale_factors: str = parameter(
        "auto",
        f"group sizes s, fastest pairs first, as 2/8/32; or what was calibrated for {', '.join(CALIBRATED)}; auto: "
        "2 I / T rounded up for all pairs, 1 within T",
    )
    group_bounds: str = parameter(
        "equal", "first pair of every group, and one past the last, as 0/16/40/64; equal: as many pairs for each"
    )
    selected_pairs: str = parameter(
        "all", "JSON file: per layer and head the pairs that are grouped, others keep true distances; all: every pair"
    )
    offset: Literal["exact", "floor"] = parameter("floor", "of group positions: w - w/s exactly, or with w//s")

    @override
    def check_together(self) -> None:
        factors, bounds = self._factors(0), self._bounds
        if bounds is not None and (
            len(bounds) != len(factors) + 1 or any(low > high for low, high in pairwise(bounds))
        ):
            raise MethodError(
                f"dpe: group_bounds must be {len(factors) + 1} pairs in ascending order for scale_factors="
                f"{self.scale_factors!r}, found {self.group_bounds!r}"
            )

    @override
    def bind(self, config: Any) -> Self:
        bound = ScaledMethod.bind(self, config)
        if self.selected_pairs != "all":
            layers, heads = config.num_hidden_layers, config.num_attention_heads
            found = [len(layer) for layer in _selection(self.selected_pairs)]
            if found != [heads] * layers:
                raise MethodError(
                    f"dpe: selected_pairs must be of {layers} layers with {heads} heads, found {len(found)} layers "
                    f"with {', '.join(map(str, sorted(set(found))))} in {self.selected_pairs}"
                )
        return bound

    @override
    def check_pairs(self, pairs: int) -> None:
        bounds, groups = self._bounds, len(self._factors(0))
        if bounds is not None and (bounds[0], bounds[-1]) != (0, pairs):
            raise MethodError(
                f"dpe: group_bounds must go from 0 to the model's {pairs} rotated pairs, found {self.group_bounds!r}"
            )
        highest = 0 if self.selected_pairs == "all" else _highest_pair(self.selected_pairs)
        if highest >= pairs:
            raise MethodError(f"dpe: selected_pairs names pair {highest}, but the model rotates {pairs} pairs")
        if groups > pairs:
            raise MethodError(f"dpe: scale_factors has {groups} groups, but the model rotates {pairs} pairs")

    @property
    @override
    def depends_on_length(self) -> bool:
        return self.scale_factors == "auto"

    @override
    def reach(self) -> Reach:
        return Reach(f"window={self.window}", self.window)

    @override
    def longest_input(self, config: Any) -> float:
        """Return where the farthest group of the smallest size reaches position T, for given sizes."""
        if self.scale_factors == "auto":
            return math.inf
        size = min(self._factors(0))
        return max(self.window, size * (self.train_length - self.window + self.window // size))

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        longest = max(self.window, self.train_length) if self.scale_factors == "auto" else self.window
        return kv_len <= (min(longest, self.train_length) if self.log_n else longest)

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return near keys, and grouped ones, both at a position for every pair."""
        sizes = self._sizes(index, extent)
        window = sizes * 0 + self.window
        offset = window - (window / sizes if self.offset == "exact" else window // sizes)
        far_end = (index - self.window + 1).clamp(min=0)
        true = index[:, None].expand(-1, extent.pairs)
        near = Band(far_end, index + 1, true, lambda key: key[:, None].expand(-1, extent.pairs))
        far = Band(far_end * 0, far_end, index[:, None] // sizes + offset, lambda key: key[:, None] // sizes)
        return near, far if self.selected_pairs == "all" else far._replace(others=(true, near.key_position))

    @override
    def selected_by_heads(self, layer: int) -> tuple[tuple[int, ...], ...]:
        return _selection(self.selected_pairs)[layer]

    @override
    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return the group's position, which serves all far keys."""
        return index[:, None] // self._sizes(index, extent)

    def _sizes(self, like: Tensor, extent: Extent) -> Tensor:
        """Return the group size of every pair, (pairs,)."""
        factors = self._factors(extent.prompt)
        bounds = self._bounds or [group * extent.pairs // len(factors) for group in range(len(factors) + 1)]
        ranges = zip(factors, pairwise(bounds), strict=True)
        return like.new_tensor([size for size, (first, end) in ranges for _ in range(first, end)])

    def _factors(self, prompt: int) -> tuple[int, ...]:
        """Return the group sizes for a prompt of so many tokens."""
        if self.scale_factors == "auto":
            return (-(-2 * prompt // self.train_length) if prompt > (self.train_length or MOST) else 1,)
        return CALIBRATED.get(self.scale_factors) or self._numbers("scale_factors", 1, f" or {', '.join(CALIBRATED)}")

    @property
    def _bounds(self) -> tuple[int, ...] | None:
        return None if self.group_bounds == "equal" else self._numbers("group_bounds", 0, " or equal")

    def _numbers(self, name: str, at_least: int, others: str) -> tuple[int, ...]:
        """Return the numbers of a parameter such as "2/8/32".

        Raises:
            MethodError: It is something else.
        """
        text = getattr(self, name)
        numbers = text.split("/")
        if not all(number.isdecimal() and at_least <= int(number) <= MOST for number in numbers):
            raise MethodError(
                f"dpe: {name} must be integers of at least {at_least} with / between them{others}, found {text!r}"
            )
        return tuple(map(int, numbers))


@lru_cache
def _selection(path: str) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the pairs that a file selects: of each layer for each head.

    Raises:
        MethodError: It does not say so.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        selection = tuple(tuple(tuple(pairs) for pairs in layer) for layer in found)
    except (OSError, ValueError, TypeError) as error:
        raise MethodError(f"dpe: selected_pairs must be 'all' or a JSON file, found {path!r}: {error}") from error
    if not all(type(pair) is int and pair >= 0 for layer in selection for pairs in layer for pair in pairs):
        raise MethodError(f"dpe: selected_pairs must hold, per layer and head, lists of integers from 0 on: {path}")
    return selection


def _highest_pair(path: str) -> int:
    return max((pair for layer in _selection(path) for pairs in layer for pair in pairs), default=0)
