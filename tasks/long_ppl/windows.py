"""Several windows of one document, spread evenly over it."""

import heapq
from collections.abc import Sequence

from mesa_lm.tasks.long_ppl.cutting import Count, last_word_end, longest_piece

OWN_SHARE = 0.5  # of a window that the one before it has not, at least


def windows_per_document(tokens: Sequence[int], window: int, wanted: int) -> list[int]:
    """Return how many windows each document gives: at least one, the others where there is most text for each.

    Args:
        tokens: Of each document, at least `window`.
        window: Tokens of a window.
        wanted: Windows in all, at least as many as there are documents.

    Returns:
        Numbers that sum up to `wanted`, or to less where windows would overlap by more than half.
    """
    numbers = [1] * len(tokens)
    # By what the starts of a document's windows would be apart if it gave one more, as a share of a window.
    room = [(-_apart(count, window, 2), i) for i, count in enumerate(tokens)]
    heapq.heapify(room)
    while sum(numbers) < wanted and -room[0][0] >= OWN_SHARE:
        _, i = room[0]
        numbers[i] += 1
        heapq.heapreplace(room, (-_apart(tokens[i], window, numbers[i] + 1), i))
    return numbers


def window_starts(text: str, number: int, window: int, count: Count) -> list[int]:
    """Return where windows start that are spread evenly over a document, each after a word.

    Args:
        text: The document, of at least `window` tokens.
        number: How many windows.
        window: Tokens of each.
        count: From a text to its number of tokens.

    Returns:
        Characters, ascending, from the start of the document to where its last window is left.
    """
    starts = [0]
    step = (count(text) - window) // max(1, number - 1)
    while len(starts) < number:
        rest = text[starts[-1] :]
        # Back to the end of the word before, so that steps do not add up to more than there is.
        end = last_word_end(longest_piece(rest, step, count))
        starts.append(starts[-1] + end)
    return starts


def _apart(tokens: int, window: int, number: int) -> float:
    return (tokens - window) / (number - 1) / window
