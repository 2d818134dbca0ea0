"""Cut held-out text into samples of a given length in tokens, and score them."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from typing import Any

from datasets import Dataset

from mesa_lm.errors import UsageError
from mesa_lm.task_support import check_count, check_option_names, load_neighbour, wrong_option
from mesa_lm.tokenizing import load_tokenizer, token_counter

OPTIONS = ("lengths", "num_samples")

SOURCE = load_neighbour(__file__, "source_text.py")


@cache
def source_text() -> str:
    """Return the text that samples are cut from: the held-out files of the standard library, one after the other."""
    return "\n".join(SOURCE.standard_library(held_out=True))


@cache
def line_starts() -> list[int]:
    """Return where in the source text its lines start, empty ones left out."""
    return [line.start() for line in re.finditer("^.", source_text(), re.MULTILINE)]


def check_options(metadata: Mapping[str, Any]) -> None:
    """Check the options of long_ppl before anything is loaded; the README describes them.

    Args:
        metadata: The user's metadata. It holds the arguments of the model, too, so that an unknown name is wrong only
            if it resembles an option.

    Raises:
        UsageError: An option is misspelt, of the wrong type or out of range.
    """
    check_option_names("long_ppl", metadata, OPTIONS)
    check_count("long_ppl", "num_samples", metadata)
    if metadata.get("num_samples", 0) > len(line_starts()):
        allowed = f"at most {len(line_starts())}, the number of lines of the held-out text"
        raise wrong_option("long_ppl", "num_samples", allowed, metadata)


def long_ppl_dataset(*, length: int, num_samples: int, **model_args: Any) -> dict[str, Dataset]:
    """Build the samples of one length.

    Sample i starts at the same place at every length, so that a longer sample begins with the shorter ones.

    Args:
        length: Tokens of a sample as lm-eval encodes it, special tokens included. A sample never has more, and a few
            less where one character more makes several tokens of it.
        num_samples: How many samples. They start at evenly spaced lines and overlap where the text is too short.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns text, length (as asked), tokens (as counted) and source_sha256 (of the text
        that samples are cut from, which differs between Python versions).

    Raises:
        UsageError: An option is wrong, or the length is too short for any text or longer than the whole text.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    check_options(model_args | {"num_samples": num_samples})
    count_tokens = token_counter(load_tokenizer(model_args), model_args.get("add_bos_token"))
    source, starts = source_text(), line_starts()
    digest = sha256(source.encode()).hexdigest()
    docs = []
    for i in range(num_samples):
        start = starts[i * len(starts) // num_samples]
        text = longest_prefix(source[start:] + source[:start], length, count_tokens)
        docs.append({"text": text, "length": length, "tokens": count_tokens(text), "source_sha256": digest})
    return {"test": Dataset.from_list(docs)}


def longest_prefix(text: str, length: int, count_tokens: Callable[[str], int]) -> str:
    """Cut a text after `length` tokens, or just below where one character more makes several tokens of it.

    Tokens are nearly proportional to characters, so that regula falsi needs a handful of counts.

    Args:
        text: The text.
        length: Tokens.
        count_tokens: From a text to its number of tokens.

    Returns:
        The prefix.

    Raises:
        UsageError: The length is too short for any text or longer than the whole text.
    """
    low, high = 0, 0  # characters, too few and too many
    below = above = count_tokens("")
    while above < length and high < len(text):
        high = min(len(text), max(4 * length, 2 * high))
        above = count_tokens(text[:high])
    if above < length:
        raise UsageError(
            f"long_ppl: a length of {length} tokens is longer than the whole held-out text; "
            f"with this tokenizer it must be at most {above}"
        )
    while above > length and high - low > 1:
        middle = low + max(1, (high - low) * (length - below) // (above - below))
        tokens = count_tokens(text[:middle])
        if tokens < length:
            low, below = middle, tokens
        else:
            high, above = middle, tokens
    cut = high if above == length else low
    if cut == 0:
        raise UsageError(
            f"long_ppl: a length of {length} tokens is too short for any text; "
            f"with this tokenizer it must be at least {count_tokens(text[:1])}"
        )
    return text[:cut]


def score(doc: Mapping[str, Any], results: list[float]) -> dict[str, float]:
    """Return how unlikely the model finds a sample.

    Args:
        doc: The sample.
        results: Its log-likelihood, nats.

    Returns:
        `nll`: the mean negative log-likelihood of its tokens, nats per token.
    """
    return {"nll": -results[0] / doc["tokens"]}
