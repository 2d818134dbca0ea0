"""Processes that share each prompt: context parallelism by `torch.distributed`.

Every process runs the first chunk, a contiguous run of the middle chunks, the last chunk and every decoded token. The
keys and values of middle chunks stay where they were made; attention over all of them is merged by log-sum-exp.

Source: the second phase of Star Attention, arXiv 2411.17116, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from hashlib import sha256
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mesa_lm.attention.call import ForwardCall
from mesa_lm.attention.kernels import Partial, merge
from mesa_lm.errors import LostRankError, ModelError


class Ranks:
    """The processes of a group, as one of them sees them.

    Attributes:
        group: The process group.
        rank: This process within it.
        size: Number of processes.
    """

    def __init__(self, group: dist.ProcessGroup, stretch: int) -> None:
        """Look at a group.

        Args:
            group: It has this process.
            stretch: Tokens after a prompt that one process keeps before the next one does.
        """
        self.group, self._stretch = group, stretch
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self  # caches are copied, process groups are not

    def own(self, chunks: int) -> range:
        """Return which of so many middle chunks this process runs."""
        return range(chunks * self.rank // self.size, chunks * (self.rank + 1) // self.size)

    def keeps(self, index: int) -> bool:
        """Tell whether this process keeps keys and values of the tokens that are appended at an index."""
        return index // self._stretch % self.size == self.rank

    def merge(self, own: Partial) -> Tensor:
        """Return attention over the keys of all processes, the same bits on each.

        Args:
            own: Attention over the keys that this process holds, of the same queries on every process.
        """
        sent = torch.cat([own.output.to(own.lse.dtype), own.lse.unsqueeze(-1)], dim=-1)
        gathered = sent.new_empty(self.size, *sent.shape)
        with _lost():
            dist.all_gather(list(gathered), sent, self.group)
        weight = gathered[..., -1:].softmax(0)
        return (gathered[..., :-1] * weight).sum(0).to(own.output.dtype)

    def add_up(self, states: Tensor) -> None:
        """Add up what the processes have, in place."""
        with _lost():
            dist.all_reduce(states, group=self.group)

    def check_alike(self, call: ForwardCall) -> None:
        """Check that every process was called with the same tokens: each goes on as if the others did what it does.

        Args:
            call: Of this process.

        Raises:
            ModelError: They were not.
        """
        new = None if call.attention_mask is None else call.attention_mask[..., call.past :]
        digest = sha256(f"{call.past} {call.logits_to_keep}".encode())
        for given in (call.tokens, new):
            if given is not None:
                copied = given.detach().cpu().clone(memory_format=torch.contiguous_format)
                digest.update(copied.view(torch.uint8).numpy().tobytes())
        own = torch.frombuffer(bytearray(digest.digest()[:8]), dtype=torch.int64).to(call.tokens.device)
        gathered = own.new_empty(self.size)
        with _lost():
            dist.all_gather(list(gathered.split(1)), own, self.group)
        if bool((gathered != own).any()):
            raise ModelError(
                "the processes that share this prompt were given different tokens; give all of them the same calls, "
                "and the same seed where they sample"
            )


def merge_runs(runs: Sequence[Sequence[Partial]], queries: Sequence[Tensor], ranks: Ranks | None) -> Tensor:
    """Return the attention of some rows, (rows, num_heads, q_len, head_dim).

    Args:
        runs: For each run of rows attention over disjoint sets of keys.
        queries: For each run its queries.
        ranks: Processes that hold further keys of these rows; None: there are none.
    """
    if ranks is None:
        outputs = [merge(partials) for partials in runs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    own = [_joined(partials, query) for partials, query in zip(runs, queries, strict=True)]
    return ranks.merge(Partial(*(torch.cat(states) for states in zip(*own, strict=True))))


def _joined(partials: Sequence[Partial], query: Tensor) -> Partial:
    """Return attention over some or no sets of keys, with its log-sum-exp."""
    if not partials:
        dtype = torch.promote_types(query.dtype, torch.float32)
        return Partial(torch.zeros_like(query), query.new_full(query.shape[:-1], -torch.inf, dtype=dtype))
    return Partial(merge(partials), reduce(torch.logaddexp, (partial.lse for partial in partials)))


@contextmanager
def _lost() -> Iterator[None]:
    """Say in one line that an exchange failed."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise LostRankError(
            f"an exchange with the processes that share this prompt failed; one of them has ended, see its own output "
            f"({reason})"
        ) from error
