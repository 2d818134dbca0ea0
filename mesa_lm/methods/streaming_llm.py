"""StreamingLLM: attention sinks and a rolling window, with positions inside the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import (
    bound_int,
    parameter,
    require_choice,
    require_int,
    train_length_of,
    warn_if_beyond,
)

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

    start_size: int = parameter(4, "attention sinks S: first keys that every query sees")
    recent_size: int | None = parameter(None, "last keys R that a query sees before itself; None: min(512, T - S - 1)")
    evict: Literal["every_token", "every_turn"] = parameter("every_token", "when keys are dropped")
    max_gen_len: int | None = parameter(None, "tokens of an answer to leave room for; None: 1000; only every_turn")

    def __post_init__(self) -> None:
        require_int(self, "start_size", 0)
        require_int(self, "recent_size", 0, optional=True)
        require_int(self, "max_gen_len", 0, optional=True)
        require_choice(self, "evict", ("every_token", "every_turn"))
        if self.max_gen_len is not None and self.evict == "every_token":
            raise MethodError(f"{self.name}: max_gen_len has no meaning with evict='every_token'; leave it out")

    @property
    def has_bands(self) -> bool:
        """Whether every token evicts; within a turn, every token sees all that is cached."""
        return self.evict == "every_token"

    @property
    def depends_on_length(self) -> bool:
        """See `Method.depends_on_length`: a turn drops what it needs room for."""
        return self.evict == "every_turn"

    def resolve(self, config: Any) -> Self:
        """Fill in the window; see `Method.resolve`."""
        train_length = train_length_of(config)
        recent = self.recent_size
        if recent is None:
            recent = max(0, min(512, train_length - self.start_size - 1))
        sizes = f"start_size={self.start_size}, recent_size={recent}"
        own = 0 if self.evict == "every_turn" else 1  # a turn makes room for itself
        warn_if_beyond(self, sizes, self.start_size + recent + own, train_length)
        answer = PUBLISHED_MAX_GEN_LEN if self.max_gen_len is None else self.max_gen_len
        return replace(self, recent_size=recent, max_gen_len=answer if self.evict == "every_turn" else None)

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: nothing was evicted yet; a prompt without a cache never evicts every turn."""
        size = self.start_size + bound_int(self, "recent_size")
        if self.evict == "every_turn":
            return not cached or kv_len + bound_int(self, "max_gen_len") <= size
        return kv_len <= size + 1

    def evicted(self, cached: int, new: int) -> range:
        """See `Method.evicted`: between the sinks and the last R - c tokens, for c of the turn and its answer."""
        recent = bound_int(self, "recent_size")
        if self.evict == "every_token" or new == 1:
            return range(0)
        turn = new + bound_int(self, "max_gen_len")
        if cached + turn <= self.start_size + recent:
            return range(0)
        return range(self.start_size, cached - max(0, recent - turn))

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`: slots of the cache are positions, so a full cache's query is at S + R."""
        sinks, recent = self.start_size, bound_int(self, "recent_size")
        full = index > sinks + recent
        recent_start = ((index - recent) * full).clamp(min=0)
        return (
            Band(recent_start, index + 1, index, lambda key: key),
            Band(index * 0, full * sinks, index * 0 + sinks + recent, lambda key: key),
        )
