"""Cut text at a length in tokens, and at the ends of words."""

import re
from collections.abc import Callable

from mesa_lm.errors import UsageError

WORD = 64  # characters; text without space for longer, as Chinese, is cut anywhere

# From a text to its number of tokens.
Count = Callable[[str], int]


def longest_piece(text: str, length: int, count: Count, from_end: bool = False) -> str:
    """Cut a text after `length` tokens, or just below where one character more makes several tokens of it.

    Tokens are nearly proportional to characters, so that regula falsi needs a handful of counts.

    Args:
        text: The text.
        length: Tokens.
        count: From a text to its number of tokens.
        from_end: Keep the end of the text, not its beginning.

    Returns:
        The piece; the whole text where it has no more tokens.

    Raises:
        UsageError: The length is too short for any text.
    """

    def piece(characters: int) -> str:
        return text[len(text) - characters :] if from_end else text[:characters]

    low, high = 0, 0  # characters, too few and too many
    below = above = count("")
    while above < length and high < len(text):
        low, below = high, above
        high = min(len(text), max(4 * length, 2 * high))
        above = count(piece(high))
    if above < length:
        return text
    while above > length and high - low > 1:
        middle = low + max(1, (high - low) * (length - below) // (above - below))
        tokens = count(piece(middle))
        if tokens < length:
            low, below = middle, tokens
        else:
            high, above = middle, tokens
    cut = high if above == length else low
    if cut == 0:
        raise too_short(length, count(piece(1)))
    return piece(cut)


def too_short(length: int, least: int) -> UsageError:
    """Return the error for a length in tokens that is below the least."""
    return UsageError(
        f"long_ppl: a length of {length} tokens is too short for any text; "
        f"with this tokenizer it must be at least {least}"
    )


def last_word_end(text: str) -> int:
    """Return where the last word ends that is whole for sure.

    Most tokenizers encode a text up to there as they do within a longer text, and lm-eval moves the space after a
    context into the continuation.
    """
    cut = re.search(rf"\s+\S{{0,{WORD}}}$", text)
    return cut.start() if cut and cut.start() else len(text.rstrip())


def first_word_end(text: str) -> int:
    """Return where the first word ends: something to predict from."""
    word = re.match(rf"\s*\S{{1,{WORD}}}", text)
    return word.end() if word else len(text)
