"""StreamingLLM: attention sinks and a rolling window, with positions inside the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Method, Reach
from mesa_lm.methods.geometry import Band, Extent, Kept
from mesa_lm.methods.parameters import parameter

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED_MAX_GEN_LEN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingLLM(Method):
    """See the first `start_size` and the last `recent_size` keys, at the positions they have among one another.

    Every token is run as if it had been fed alone, as the published evaluation loop feeds it. With
    `evict="every_turn"` nothing is dropped inside a turn, as in the published chat demo: a call that appends several
    tokens begins a turn, and before it the cache drops what would not leave room for it and its answer.

    Source: arXiv 2309.17453; pos_shift/modify_llama.py and kv_cache.py of github.com/mit-han-lab/streaming-llm.
    """

    name: ClassVar[str] = "streaming_llm"

    start_size: int = parameter(4, "attention sinks S: first keys that every query sees", at_least=0)
    recent_size: int = parameter(
        lambda T, method: max(0, min(512, T - method.start_size - 1)),
        "last keys R that a query sees before itself",
        shown="min(512, T - start_size - 1)",
        at_least=0,
    )
    evict: Literal["every_token", "every_turn"] = parameter("every_token", "when keys are dropped")
    max_gen_len: int | None = parameter(
        lambda T, method: PUBLISHED_MAX_GEN_LEN if method.evict == "every_turn" else None,
        "tokens of an answer to leave room for; only every_turn",
        shown="1000",
        at_least=0,
    )

    @override
    def check_together(self) -> None:
        if self.max_gen_len is not None and self.evict == "every_token":
            raise MethodError(f"{self.name}: max_gen_len has no meaning with evict='every_token'; leave it out")

    @property
    @override
    def has_bands(self) -> bool:
        """Whether every token evicts; within a turn, every token sees all that is cached."""
        return self.evict == "every_token"

    @property
    @override
    def kept(self) -> Kept | None:
        """Sinks and recent keys; what a turn drops is said by `evicted`."""
        return Kept(self.start_size, self.recent_size) if self.evict == "every_token" else None

    @property
    @override
    def depends_on_length(self) -> bool:
        """Whether a turn drops what it needs room for."""
        return self.evict == "every_turn"

    @override
    def reach(self) -> Reach:
        own = 0 if self.evict == "every_turn" else 1  # a turn makes room for itself
        sizes = f"start_size={self.start_size}, recent_size={self.recent_size}"
        return Reach(sizes, self.start_size + self.recent_size + own)

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """Tell whether nothing was evicted yet; a prompt without a cache never evicts in `every_turn`."""
        size = self.start_size + self.recent_size
        if self.max_gen_len is not None:
            return not cached or kv_len + self.max_gen_len <= size
        return kv_len <= size + 1

    @override
    def evicted(self, cached: int, new: int) -> range:
        """Return what lies between the sinks and the last R - c tokens, for c of the turn and its answer."""
        if self.max_gen_len is None or new == 1:
            return range(0)
        turn = new + self.max_gen_len
        if cached + turn <= self.start_size + self.recent_size:
            return range(0)
        return range(self.start_size, cached - max(0, self.recent_size - turn))

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return recent keys and sinks; slots of the cache are positions, so a full cache's query is at S + R."""
        sinks, recent = self.start_size, self.recent_size
        full = index > sinks + recent
        recent_start = ((index - recent) * full).clamp(min=0)
        return (
            Band(recent_start, index + 1, index, lambda key: key),
            Band(index * 0, full * sinks, index * 0 + sinks + recent, lambda key: key),
        )
