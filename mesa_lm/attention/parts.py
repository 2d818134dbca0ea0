"""What queries see, cut into parts that one kernel call each computes.

A band says for every query where its keys start and end. Where both bounds keep still or move by one key per query, the
keys are rectangles and triangles, and a triangle is causal attention, as it is or with queries and keys in reversed
order. Where an end moves by several keys per query, every several-th key makes a triangle. Parts of one shape at equal
distances from each other are rows of one batch. So the number of parts does not grow with the number of queries.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# On the CPU a window is cheaper with a mask, in blocks of so many queries: few mask less in vain, more fill the
# kernel's own blocks better. Where ends are steeper, rectangles leave blocks of fewer queries to masks.
_WINDOW_BLOCK, _STEEP_BLOCK = 128, 16


class Part(NamedTuple):
    """Equal attention problems at equal distances.

    Attributes:
        shape: Queries see all keys; query i sees keys 0..i; query i sees keys i and later; query i sees the keys
            lead[0] * i <= j < width + lead[1] * i.
        query: First query of the first problem, counted within the band's queries.
        key: Its first key.
        q_len: Queries of a problem.
        kv_len: Keys of a problem.
        width: For shape "slanted".
        lead: Likewise.
        problems: Their number.
        query_step: Queries from one problem to the next; 0: all have the same ones.
        key_step: Keys from one problem to the next.
        key_stride: Keys of the band from one key of a problem to its next.
    """

    shape: Literal["full", "causal", "reversed", "slanted"]
    query: int
    key: int
    q_len: int
    kv_len: int
    width: int = 0
    lead: tuple[int, int] = (0, 0)
    problems: int = 1
    query_step: int = 0
    key_step: int = 0
    key_stride: int = 1

    def visible(self) -> Tensor:
        """Return (q_len, kv_len) bool: what a slanted part's queries see."""
        query, key = torch.arange(self.q_len)[:, None], torch.arange(self.kv_len)
        return (key >= self.lead[0] * query) & (key < self.width + self.lead[1] * query)


def parts_of(start: Tensor, end: Tensor, for_cpu: bool) -> list[Part]:
    """Cut a band into parts; each pair of a query and a key that it sees is in one of them.

    Args:
        start: (q_len,) first key of each query; does not decrease.
        end: (q_len,) one past its last key; does not decrease.
        for_cpu: Whether arithmetic and memory decide the time, as on a CPU, or the number of kernels.
    """
    runs = _runs(start, torch.maximum(start, end))
    return _batched([part for run in runs for part in _parts_of_run(*run, for_cpu)])


def _runs(start: Tensor, end: Tensor) -> Iterator[tuple[int, int, int, int, tuple[int, int]]]:
    """Yield consecutive queries whose bounds move evenly.

    Each is the first query, their number, the first query's first key and one past its last, and the steps of both.
    """
    count = len(start)
    if count == 1:
        yield 0, 1, int(start[0]), int(end[0]), (0, 0)
        return
    steps, lengths = torch.stack([start.diff(), end.diff()], 1).unique_consecutive(dim=0, return_counts=True)
    place = following = 0  # query at which the step begins; first query not yet in a run
    for (first_step, last_step), length in zip(steps.tolist(), lengths.tolist(), strict=True):
        even = (first_step, last_step) in ((0, 0), (0, 1), (1, 0), (1, 1)) or (first_step == 0 and length > 1)
        runs = [(max(place, following), place + length)] if even else [(q, q) for q in range(place, place + length)]
        for first, last in runs:
            if first >= following and last >= first:
                lead = (first_step, last_step) if even else (0, 0)
                yield first, last - first + 1, int(start[first]), int(end[first]), lead
                following = last + 1
        place += length
    if following < count:
        yield following, count - following, int(start[following]), int(end[following]), (0, 0)


def _parts_of_run(query: int, count: int, start: int, end: int, lead: tuple[int, int], for_cpu: bool) -> Iterator[Part]:
    """Yield the parts of queries whose bounds move evenly; arguments as `_runs` yields them."""
    width = end - start
    if count == 1 or lead == (0, 0):
        if width > 0:
            yield Part("full", query, start, count, width)
    elif lead == (0, 1):
        if width == 0:  # the first query sees nothing
            query, count, end, width = query + 1, count - 1, end + 1, 1
        yield Part("causal", query, end - 1, count, count)
        if width > 1:
            yield Part("full", query, start, count, width - 1)
    elif lead == (1, 0):
        seeing = min(count, width)
        if seeing > 0:
            yield Part("reversed", query, start, seeing, seeing)
        if width > seeing:
            yield Part("full", query, start + seeing, seeing, width - seeing)
    elif lead == (1, 1):
        if width > 0:
            yield from (_slanted_window if for_cpu else _triangles)(query, count, start, width)
    else:
        if width > 0:
            yield Part("full", query, start, count, width)
        yield from (_rectangles if for_cpu else _classes)(query, count, end, lead[1])


def _slanted_window(query: int, count: int, start: int, width: int) -> Iterator[Part]:
    """Yield the parts of a window that moves with the queries, with masks."""
    for first in range(0, count, _WINDOW_BLOCK):
        q_len = min(_WINDOW_BLOCK, count - first)
        yield Part("slanted", query + first, start + first, q_len, width + q_len - 1, width, (1, 1))


def _triangles(query: int, count: int, start: int, width: int) -> Iterator[Part]:
    """Yield the parts of a window that moves with the queries, without any mask."""
    for first in range(0, count, width):
        q_len = min(width, count - first)
        yield Part("causal", query + first, start + first + width - 1, q_len, q_len)
    for first in range(0, count, width):
        seeing = min(width - 1, count - first)  # queries that see keys before the block's first triangle
        if seeing > 0:
            yield Part("reversed", query + first, start + first, seeing, seeing)
        if width - 1 > seeing:
            yield Part("full", query + first, start + first + seeing, seeing, width - 1 - seeing)


def _classes(query: int, count: int, end: int, lead: int) -> Iterator[Part]:
    """Yield the part of keys of which each query sees `lead` more than the one before, by their residues.

    Every lead-th key is one more for each query: causal attention. All residues are problems of one kernel call.
    """
    first, q_len = query + 1, count - 1  # the first query sees none of these keys
    yield Part("causal", first, end, q_len, q_len, problems=lead, key_step=1, key_stride=lead)


def _rectangles(query: int, count: int, end: int, lead: int) -> Iterator[Part]:
    """Yield the parts of keys of which each query sees `lead` more than the one before.

    Blocks of queries see what the block before them sees in rectangles, which double in size: so their number grows
    with the logarithm of the queries.
    """
    block = _STEEP_BLOCK
    while block < count:
        for first in range(block, count, 2 * block):
            yield Part("full", query + first, end + (first - block) * lead, min(block, count - first), block * lead)
        block *= 2
    for first in range(0, count, _STEEP_BLOCK):
        # The block's first query sees none of the keys that its others see beyond it.
        q_len = min(_STEEP_BLOCK, count - first) - 1
        if q_len > 0:
            yield Part("slanted", query + first + 1, end + first * lead, q_len, q_len * lead, lead, (0, lead))


def _batched(parts: list[Part]) -> list[Part]:
    """Join parts of one shape at equal distances."""
    alike: dict[object, list[Part]] = defaultdict(list)
    for part in parts:
        alike[part._replace(query=0, key=0)].append(part)
    joined: list[Part] = []
    for members in alike.values():
        if members[0].problems > 1:
            joined += members
            continue
        current = members[0]
        for part in members[1:]:
            last = current.problems - 1
            step = (
                part.query - current.query - last * current.query_step,
                part.key - current.key - last * current.key_step,
            )
            apart = step[0] >= part.q_len and step[1] > 0
            if apart and (current.problems == 1 or step == (current.query_step, current.key_step)):
                current = current._replace(problems=current.problems + 1, query_step=step[0], key_step=step[1])
            else:
                joined.append(current)
                current = part
        joined.append(current)
    return joined
