"""Dual Chunk Attention: positions within a chunk, to the chunk before, and to all chunks before that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import (
    bound_int,
    parameter,
    require_bool,
    require_choice,
    require_int,
    train_length_of,
    warn_if_beyond,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DualChunk(Method):
    """Number keys within chunks of `chunk_size - local_window` tokens and let no query position pass `chunk_size`.

    Source: arXiv 2402.17463; chunkllama_attn_replace.py of github.com/HKUNLP/ChunkLlama. Its scaling of queries and
    keys with the length, which the paper's results do without, is `mscale`.
    """

    name: ClassVar[str] = "dual_chunk"

    train_length: int | None = parameter(None, "training length T in tokens; None: from the model's config")
    chunk_size: int | None = parameter(None, "largest query position C; None: 3T/4")
    local_window: int | None = parameter(None, "distances w that stay true across chunks; None: T/8")
    mscale: bool = parameter(False, "scale queries and keys by 1 + 0.05 ln(n / T) for n > T tokens, as the code does")

    merge: Literal["exact", "bfloat16"] = parameter(
        "exact", "weights with which a prompt's three parts are merged; the code rounds them to bfloat16"
    )

    def __post_init__(self) -> None:
        require_int(self, "train_length", 1, optional=True)
        require_int(self, "chunk_size", 2, optional=True)
        require_int(self, "local_window", 1, optional=True)
        require_bool(self, "mscale")
        require_choice(self, "merge", ("exact", "bfloat16"))

    def resolve(self, config: Any) -> Self:
        """Fill in T, chunk and window; see `Method.resolve`."""
        train_length = self.train_length or train_length_of(config)
        chunk = self.chunk_size or max(2, 3 * train_length // 4)
        window = self.local_window or max(1, train_length // 8)
        if window >= chunk:
            raise MethodError(f"{self.name}: local_window must be below chunk_size={chunk}, found {window}")
        warn_if_beyond(self, f"chunk_size={chunk}", chunk + 1, train_length)
        return replace(self, train_length=train_length, chunk_size=chunk, local_window=window)

    @property
    def rounds_merge(self) -> bool:
        """See `Method.rounds_merge`."""
        return self.merge == "bfloat16"

    @property
    def depends_on_length(self) -> bool:
        """See `Method.depends_on_length`: only what the code adds to the paper; it rounds for prompts alone."""
        return self.mscale or self.rounds_merge

    @property
    def _chunk_len(self) -> int:
        return bound_int(self, "chunk_size") - bound_int(self, "local_window")

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: one chunk and nothing scaled."""
        return kv_len <= self._chunk_len and not (self.mscale and kv_len > bound_int(self, "train_length"))

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """See `Method.bands`: the same chunk, the one before, all earlier ones."""
        length, highest = self._chunk_len, bound_int(self, "chunk_size")
        within, start = index % length, index // length * length
        before = (start - length).clamp(min=0)
        return (
            Band(start, index + 1, within, lambda key: key % length),
            Band(before, start, (within + length).clamp(max=highest), lambda key: key % length),
            Band(index * 0, before, index * 0 + min(2 * length - 1, highest), lambda key: key % length),
        )

    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return the position within the chunk, which serves all bands."""
        return index % self._chunk_len

    def query_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return m = 1 + 0.05 ln(n / T) for an input of n > T tokens, the same for all queries."""
        length = bound_int(self, "train_length")
        if not self.mscale or extent.total <= length:
            return None
        return index.float() * 0 + 0.05 * math.log(extent.total / length) + 1

    def key_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return m at the time a key is cached, as in `query_scale`; it keeps this one."""
        return self.query_scale(index, extent)
