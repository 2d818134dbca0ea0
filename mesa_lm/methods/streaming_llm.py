"""StreamingLLM: attention sinks and a rolling window, with positions inside the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mesa_lm.methods.base import Method, bound_int, parameter, require_int, train_length_of, warn_if_beyond
from mesa_lm.positions import Band, Extent

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingLLM(Method):
    """See the first `start_size` and the last `recent_size` keys, at the positions they have among one another.

    Every token is run as if it had been fed alone, as the published evaluation loop feeds it.

    Source: arXiv 2309.17453; pos_shift/modify_llama.py and kv_cache.py of github.com/mit-han-lab/streaming-llm.
    """

    name: ClassVar[str] = "streaming_llm"

    start_size: int = parameter(4, "attention sinks S: first keys that every query sees")
    recent_size: int | None = parameter(None, "last keys R that a query sees before itself; None: min(512, T - S - 1)")

    def __post_init__(self) -> None:
        require_int(self, "start_size", 0)
        require_int(self, "recent_size", 0, optional=True)

    def resolve(self, config: Any) -> Self:
        """Fill in the window; see `Method.resolve`."""
        train_length = train_length_of(config)
        recent = self.recent_size
        if recent is None:
            recent = max(0, min(512, train_length - self.start_size - 1))
        sizes = f"start_size={self.start_size}, recent_size={recent}"
        warn_if_beyond(self, sizes, self.start_size + recent + 1, train_length)
        return replace(self, recent_size=recent)

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: nothing was evicted yet."""
        return kv_len <= self.start_size + bound_int(self, "recent_size") + 1

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`: slots of the cache are positions, so a full cache's query is at S + R."""
        sinks, recent = self.start_size, bound_int(self, "recent_size")
        full = index > sinks + recent
        recent_start = ((index - recent) * full).clamp(min=0)
        return (
            Band(recent_start, index + 1, index, lambda key: key),
            Band(index * 0, full * sinks, index * 0 + sinks + recent, lambda key: key),
        )
