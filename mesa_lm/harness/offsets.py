"""Which tokens lie within which characters."""

from bisect import bisect_right
from collections.abc import Sequence

Span = Sequence[int]  # from one character to before another


def within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """Return which tokens lie wholly within one of some spans; special tokens, of no characters, never do.

    Args:
        offsets: Of each token.
        spans: Ascending, none within another.
    """
    starts = [start for start, _ in spans]
    found = []
    for i, (start, end) in enumerate(offsets):
        place = bisect_right(starts, start) - 1
        if place >= 0 and start < end <= spans[place][1]:
            found.append(i)
    return found


def merged(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Return spans in which those that touch are one.

    Args:
        spans: Ascending; those without characters are left out.
    """
    found: list[tuple[int, int]] = []
    for start, end in spans:
        if found and found[-1][1] == start < end:
            found[-1] = (found[-1][0], end)
        elif start < end:
            found.append((start, end))
    return found
