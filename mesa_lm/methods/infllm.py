"""InfLLM: initial tokens, a window, and the blocks of the past that score highest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Kind, Reach
from mesa_lm.methods.geometry import Band, Extent
from mesa_lm.methods.parameters import parameter
from mesa_lm.methods.recall import ContextMemory, Keys, Recalled, RecallMethod, in_pieces

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class InfLLM(RecallMethod):
    """See the last `n_local` keys at their distances; the first `n_init` and chosen blocks at distance `n_local` - 1.

    Tokens that leave the window become blocks. A block is found by the mean of its keys that received most attention;
    every piece of `exc_block_size` tokens chooses the `topk` blocks whose representatives score highest.

    Source: InfLLM, NeurIPS 2024, arXiv 2402.04617; context_manager.py of github.com/thunlp/InfLLM.
    """

    name: ClassVar[str] = "infllm"
    kind: ClassVar[Kind] = "retrieval"

    n_init: int = parameter(
        lambda T: min(128, T // 32), "first tokens that every query sees", shown="min(128, T/32)", at_least=0
    )
    n_local: int = parameter(
        lambda T: max(1, min(4096, T // 2)),
        "last keys L that a query sees, itself included",
        shown="min(4096, T/2)",
        at_least=1,
    )
    block_size: int = parameter(
        lambda T: max(1, min(128, T // 32)), "tokens of a block", shown="min(128, T/32)", at_least=1
    )
    topk: int = parameter(16, "blocks that a piece chooses", at_least=0)
    repr_topk: int = parameter(
        lambda T, method: min(4, method.block_size),
        "keys of a block whose mean represents it",
        shown="min(4, block_size)",
        at_least=1,
    )
    exc_block_size: int = parameter(
        lambda T, method: max(1, min(512, method.n_local // 4)),
        "tokens of a piece, which choose together; at most n_local",
        shown="min(512, n_local/4)",
        at_least=1,
    )
    chunk_size: int = parameter(
        lambda T, method: min(8192, 16 * method.exc_block_size),
        "tokens after which a prompt's pieces begin anew",
        shown="min(8192, 16*exc_block_size)",
        at_least=1,
    )
    perhead: bool = parameter(False, "let every query head choose for itself")
    overlap: bool = parameter(
        False, "see tokens that are leaving the window a second time, as far ones, as the code does in prefill"
    )
    offload: bool = parameter(False, "keep the keys and values of blocks in host memory")

    @override
    def check_fit(self) -> None:
        if self.exc_block_size > self.n_local:
            raise MethodError(
                f"infllm: exc_block_size must be at most n_local={self.n_local}, found {self.exc_block_size}"
            )
        if self.repr_topk > self.block_size:
            raise MethodError(f"infllm: repr_topk must be at most block_size={self.block_size}, found {self.repr_topk}")

    @override
    def reach(self) -> Reach:
        return Reach(f"n_local={self.n_local}", self.n_local)

    @property
    @override
    def recalled_from(self) -> int:
        """The distance of everything far; the paper has `n_local` itself, its code one less."""
        return self.n_local - 1

    @property
    @override
    def remembers(self) -> bool:
        """Blocks are represented by what their tokens received from the first one on."""
        return True

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return kv_len <= self.n_local and not cached

    @override
    def pieces(self, cached: int, new: int) -> list[int]:
        """Return pieces of `exc_block_size` tokens in chunks of `chunk_size`, the last token by itself."""
        chunks = in_pieces(new - 1, self.chunk_size)
        return [*(piece for chunk in chunks for piece in in_pieces(chunk, self.exc_block_size)), 1]

    def _held(self, cached: int) -> tuple[int, int, int]:
        """Return how many initial tokens and blocks there are after so many tokens, and the first token not in them."""
        initial = max(0, min(self.n_init, cached - self.n_local))
        blocks = max(0, (cached - self.n_local - self.n_init) // self.block_size)
        return initial, blocks, initial + blocks * self.block_size

    @property
    @override
    def offloaded(self) -> bool:
        return self.offload

    @override
    def away(self, cached: int) -> range:
        _, blocks, start = self._held(cached)
        return range(self.n_init, start) if self.offload and blocks else range(0)

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return the window, tokens that have left it but are in no block yet, and the initial tokens."""
        first, end = int(index[0]), int(index[-1]) + 1
        initial, _, start = self._held(first)
        left = index * 0 + end - self.n_local if self.overlap else index - self.n_local + 1
        far = index * 0 + self.recalled_from
        return (
            Band((index - self.n_local + 1).clamp(min=0), index + 1, index, lambda key: key),
            Band(index * 0 + start, left, far, lambda key: key * 0),
            Band(index * 0, index * 0 + initial, far, lambda key: key * 0),
        )

    @override
    def recall(self, query: Tensor, keys: Keys, past: int, memory: ContextMemory | None) -> Recalled | None:
        """Return all blocks where there are few, else those with the highest scores of the piece's mean query."""
        blocks = self._held(past)[1]
        count = min(self.topk, blocks)
        if memory is None or count == 0:
            return None
        scores = (query.float().mean(1, keepdim=True) * memory.representatives).sum(-1)  # (num_heads, blocks)
        if not self.perhead or count == blocks:
            scores = scores.sum(0, keepdim=True)
        chosen = scores.topk(count).indices.unsqueeze(-1)
        within = chosen.new_ones(self.block_size).cumsum(0) - 1
        index = (self.n_init + chosen * self.block_size + within).flatten(1)
        return Recalled(index, chosen.new_full((query.shape[1],), self.recalled_from))

    @override
    def remember(
        self, memory: ContextMemory | None, received: Tensor, keys: Keys, past: int, new: int
    ) -> ContextMemory:
        """Add what the window's tokens received, and represent the blocks that the piece completes."""
        _, before, start = self._held(past)
        _, blocks, following = self._held(past + new)
        num_heads, count = received.shape
        total = received.new_zeros(num_heads, past + new - start)
        if memory is not None:
            total[:, : past - start] = memory.received
        total[:, -count:] += received
        first, tokens = self.n_init + before * self.block_size, (blocks - before) * self.block_size
        completed = keys(first, first + tokens).float()
        groups, head_dim = num_heads // len(completed), completed.shape[-1]
        shape = blocks - before, self.block_size
        found = received.new_zeros(num_heads, 0, head_dim) if memory is None else memory.representatives
        if tokens:
            best = total[:, first - start : first - start + tokens].unflatten(1, shape).topk(self.repr_topk).indices
            own = completed.repeat_interleave(groups, 0).unflatten(1, shape)  # (num_heads, blocks, tokens, head_dim)
            means = own.gather(2, best.unsqueeze(-1).expand(-1, -1, -1, head_dim)).mean(2)
            grown = found.new_empty(num_heads, blocks, head_dim)
            grown[:, :before], grown[:, before:] = found, means
            found = grown
        return ContextMemory(total[:, following - start :], found)
