"""ReAttention: first and last keys, and spans around the keys that score highest without positions, side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Kind, Reach
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import parameter
from mesa_lm.methods.recall import ContextMemory, Keys, Recalled, RecallMethod, in_pieces

if TYPE_CHECKING:
    from torch import Tensor

_MOST_SCORES = 2**26  # of queries and keys, in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ReAttention(RecallMethod):
    """See the first `n_init` keys, the last of up to `n_local`, and of those between spans around the best.

    Best are, for any head and any query of a piece, the `topk` keys with the highest scores at distance 0. What is
    seen is numbered without gaps.

    Source: ReAttention, arXiv 2407.15176; cache_utils_v0921.py of github.com/OpenMOSS/ReAttention.
    """

    name: ClassVar[str] = "reattention"
    kind: ClassVar[Kind] = "retrieval"

    n_init: int = parameter(
        lambda T: min(32, T // 16), "first keys g that every query sees", shown="min(32, T/16)", at_least=0
    )
    n_local: int = parameter(
        lambda T: max(1, min(4096, T // 2)), "most last keys L that are seen", shown="min(4096, T/2)", at_least=1
    )
    topk: int = parameter(4, "best keys of a query in a head", at_least=0)
    span: int = parameter(
        lambda T: max(1, min(32, T // 16)),
        "keys seen around a best one, itself included",
        shown="min(32, T/16)",
        at_least=1,
    )
    chunk_size: int = parameter(
        lambda T: max(1, min(512, T // 16)),
        "tokens of a piece, which choose together; at most n_local - align",
        shown="min(512, T/16)",
        at_least=1,
    )
    align: int = parameter(
        lambda T: max(1, min(128, T // 64)),
        "the keys between first and last ones are a multiple of this",
        shown="min(128, T/64)",
        at_least=1,
    )
    recall_clip: int | Literal["all"] = parameter(
        lambda T, method: max(1, (T - method.n_init - method.n_local) // method.span),
        "most best keys of a piece, those that are best most often",
        shown="(T - n_init - n_local)/span",
        at_least=1,
    )
    original_positions: bool = parameter(False, "leave keys at their true positions instead of numbering them anew")
    selection: Literal["exact", "released"] = parameter(
        "exact", "as defined, or with key heads paired and odd spans rounded as in the code"
    )

    @override
    def check_fit(self) -> None:
        if self.chunk_size > self.n_local - self.align:
            raise MethodError(
                f"reattention: chunk_size must be at most n_local - align = {self.n_local - self.align}, so that a "
                f"piece's queries see their own keys, found {self.chunk_size}"
            )

    @override
    def reach(self) -> Reach:
        clip = 0 if self.recall_clip == "all" or self.topk == 0 else self.recall_clip
        sizes = f"n_init={self.n_init}, n_local={self.n_local}"
        sizes += f", recall_clip={clip}, span={self.span}" if clip else ""
        return Reach(sizes, self.n_init + self.n_local + clip * self._span_len)

    @override
    def longest_input(self, config: Any) -> float:
        """Return T where what is seen, or its positions, may grow with the input."""
        bounded = self.recall_clip != "all" or self.topk == 0
        return math.inf if bounded and not self.original_positions else self.train_length

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return kv_len <= self.n_init + self.n_local

    @override
    def pieces(self, cached: int, new: int) -> list[int]:
        """Return a first piece that sees everything, pieces of `chunk_size` tokens, the last token by itself."""
        before = new - 1
        first = 0
        if not cached:
            rest = (before - self.n_init + self.n_local) % self.align
            first = min(before, self.n_init + self.n_local - (self.align - rest))
        return [*([first] if first else []), *in_pieces(before - first, self.chunk_size), 1]

    def _last(self, kv_len: int) -> int:
        """Return how many last keys are seen of more than g + L; without choice, L."""
        if self.topk == 0:
            return self.n_local
        return self.n_local - (self.align - (kv_len - self.n_init - self.n_local) % self.align)

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return the last keys, or all of them where nothing is chosen."""
        kv_len = int(index[-1]) + 1
        start = 0 if self.is_untouched(kv_len, cached=True) else kv_len - self._last(kv_len)
        return (Band(index * 0 + start, index + 1, index, lambda key: key),)

    @override
    def recall(self, query: Tensor, keys: Keys, past: int, memory: ContextMemory | None) -> Recalled | None:
        """Return the first keys and the spans, with positions that lead up to those of the last keys."""
        kv_len = past + query.shape[1]
        if self.is_untouched(kv_len, cached=True):
            return None
        last = self._last(kv_len)
        first = query.new_ones(self.n_init).bool()
        middle = keys(self.n_init, kv_len - last)
        chosen = self._spans(query, middle) if self.topk else first.new_zeros(middle.shape[1])
        seen = first.new_zeros(self.n_init + len(chosen))
        seen[: self.n_init], seen[self.n_init :] = first, chosen
        index = seen.nonzero()[:, 0]
        if len(index) == 0:
            return None
        own = index.new_ones(query.shape[1]).cumsum(0) - 1 + past
        if self.original_positions:
            return Recalled(index[None], own, index)
        closed_up = kv_len - last - len(index)
        return Recalled(index[None], own - closed_up, index.new_ones(len(index)).cumsum(0) - 1)

    @property
    def _offsets(self) -> tuple[int, int]:
        """The first and the last key of a span, counted from the best one; the code has one more for odd spans."""
        last = (self.span + 1) // 2 - 1
        return -((self.span + 1) // 2 if self.selection == "released" else self.span // 2), last

    @property
    def _span_len(self) -> int:
        first, last = self._offsets
        return last - first + 1

    def _spans(self, query: Tensor, key: Tensor) -> Tensor:
        """Return (count,) which of the keys in the middle lie in a span around one of the best."""
        hits = self._hits(query, key)
        count = len(hits)
        found = hits > 0
        if self.recall_clip != "all" and self.recall_clip < count:
            # Of keys that are best equally often, the later one.
            rank = hits * count + hits.new_ones(count).cumsum(0) - 1
            kept = rank.topk(self.recall_clip).indices
            found = found & found.new_zeros(count).scatter(0, kept, True)
        before = hits.new_zeros(count + 1)
        before[1:] = found.cumsum(0)
        first, last = self._offsets
        place = hits.new_ones(count).cumsum(0) - 1
        return before[(place - first + 1).clamp(max=count)] > before[(place - last).clamp(min=0)]

    def _hits(self, query: Tensor, key: Tensor) -> Tensor:
        """Return (count,) for how many queries and heads each key is among the best."""
        num_heads, new, head_dim = query.shape
        kv_heads, count = key.shape[:2]
        if self.selection == "released" and (new == 1 or self.topk not in (1, 4)):
            # Head h takes key head h mod kv_heads; the fused kernel for many queries and top 1 or 4 does not.
            query = query.view(num_heads // kv_heads, kv_heads, new, head_dim).transpose(0, 1)
        query = query.reshape(kv_heads, -1, head_dim).float()
        hits = key.new_zeros(count).long()
        per_block = max(1, _MOST_SCORES // max(1, kv_heads * count))
        turned = key.float().transpose(1, 2)
        for block in query.split(per_block, dim=1):
            best = (block @ turned).topk(min(self.topk, count), dim=-1).indices.flatten()
            hits.scatter_add_(0, best, hits.new_ones(1).expand(len(best)))
        return hits
