"""How many pieces of text, such as lines or sentences, a prompt of a given length can have."""

from collections.abc import Callable

PROBED = 8  # pieces by which the first guess of the tokens of a piece is made


def most_that_fit(text: Callable[[int], str], length: int, count: Callable[[str], int], least: int, most: int) -> int:
    """Return how many pieces a prompt can have.

    Tokens are nearly proportional to pieces, so that a handful of counts is enough.

    Args:
        text: From a number of pieces to the prompt that has so many.
        length: Tokens of the whole prompt.
        count: From a text to its number of tokens.
        least: Pieces with which the prompt is not too long.
        most: Pieces that there are.

    Returns:
        A number of pieces with which the prompt has at most `length` tokens, and with one more has more, or `most`.
    """
    shortest = count(text(least))
    low, below = least, shortest
    high, above = low, below
    while above <= length:
        if high == most:
            return most
        low, below = high, above
        per_piece = (below - shortest) / (low - least) if low > least else 0
        step = int((length - below) / per_piece) + 1 if per_piece > 0 else PROBED
        high = min(most, low + step)
        above = count(text(high))
    while high - low > 1:
        middle = low + (high - low) * (length - below) // (above - below)
        middle = min(max(middle, low + 1), high - 1)
        tokens = count(text(middle))
        if tokens <= length:
            low, below = middle, tokens
        else:
            high, above = middle, tokens
    return low
