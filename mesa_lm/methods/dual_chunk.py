"""Dual Chunk Attention: positions within a chunk, to the chunk before, and to all chunks before that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Reach, ScaledMethod
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import parameter

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DualChunk(ScaledMethod):
    """Number keys within chunks of `chunk_size - local_window` tokens and let no query position pass `chunk_size`.

    Source: arXiv 2402.17463; chunkllama_attn_replace.py of github.com/HKUNLP/ChunkLlama. Its scaling of queries and
    keys with the length, which the paper's results do without, is `mscale`.
    """

    name: ClassVar[str] = "dual_chunk"

    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T)")
    chunk_size: int = parameter(lambda T: max(2, 3 * T // 4), "largest query position C", shown="3T/4", at_least=2)
    local_window: int = parameter(
        lambda T: max(1, T // 8), "distances w that stay true across chunks", shown="T/8", at_least=1
    )
    mscale: bool = parameter(False, "scale queries and keys by 1 + 0.05 ln(n / T) for n > T tokens, as the code does")
    merge: Literal["exact", "bfloat16"] = parameter(
        "exact", "weights with which a prompt's three parts are merged; the code rounds them to bfloat16"
    )

    @override
    def check_fit(self) -> None:
        if self.local_window >= self.chunk_size:
            raise MethodError(
                f"{self.name}: local_window must be below chunk_size={self.chunk_size}, found {self.local_window}"
            )

    @override
    def reach(self) -> Reach:
        return Reach(f"chunk_size={self.chunk_size}", self.chunk_size + 1)

    @property
    @override
    def rounds_merge(self) -> bool:
        return self.merge == "bfloat16"

    @property
    @override
    def depends_on_length(self) -> bool:
        """Whether what the code adds to the paper is on; it rounds for prompts alone."""
        return self.mscale or self.rounds_merge

    @property
    def _chunk_len(self) -> int:
        return self.chunk_size - self.local_window

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return kv_len <= self._chunk_len and not ((self.mscale or self.log_n) and kv_len > self.train_length)

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return the same chunk, the one before, all earlier ones."""
        length, highest = self._chunk_len, self.chunk_size
        within, start = index % length, index // length * length
        before = (start - length).clamp(min=0)
        return (
            Band(start, index + 1, within, lambda key: key % length),
            Band(before, start, (within + length).clamp(max=highest), lambda key: key % length),
            Band(index * 0, before, index * 0 + min(2 * length - 1, highest), lambda key: key % length),
        )

    @override
    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return the position within the chunk, which serves all bands."""
        return index % self._chunk_len

    @override
    def query_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return m of the input times log-n scaling."""
        scales = [self.key_scale(index, extent), ScaledMethod.query_scale(self, index, extent)]
        return math.prod((scale for scale in scales if scale is not None), start=index.float() * 0 + 1)

    @override
    def key_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return m = 1 + 0.05 ln(n / T) for an input of n > T tokens; a key keeps that of the time it is cached."""
        if not self.mscale or extent.total <= self.train_length:
            return None
        return index.float() * 0 + 0.05 * math.log(extent.total / self.train_length) + 1
