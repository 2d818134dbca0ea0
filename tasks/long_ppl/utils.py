"""Cut long documents into the inputs of long_ppl, at exact lengths in tokens."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from datasets import Dataset
from tqdm import tqdm  # type: ignore[import-untyped]

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import check_count, check_option_names, wrong_option
from mesa_lm.harness.tokenizing import load_tokenizer, token_counter
from mesa_lm.tasks.long_ppl import source_text as embedded
from mesa_lm.tasks.long_ppl import sources

# Below lm-eval's logger, because that one alone has a handler in an lm_eval run.
logger = logging.getLogger("lm_eval.tasks.long_ppl")

TAIL = 256  # tokens
WORD = 64  # characters; text without space for longer, as Chinese, is cut anywhere
NUM_SAMPLES = 20
OPTIONS = ("lengths", "num_samples", "data", "subset", "split", "column")
EMBEDDED = "held-out files of the Python standard library"

_WORD = re.compile(rf"\s*\S{{0,{WORD}}}")


Count = Callable[[str], int]


class Documents(NamedTuple):
    """The documents that are long enough, cut to the longest input and its tail.

    Attributes:
        texts: (heads, tails): what comes before a tail, and the tail.
        dropped: Documents passed over because they are too short.
        sha256: Of the source as a whole, whichever of its documents are in use: of the embedded text, or of all
            documents, each followed by a null character.
    """

    texts: tuple[tuple[str, str], ...]
    dropped: int
    sha256: str


@cache
def source_text() -> str:
    """Return the embedded text: the held-out files of the standard library, one after the other."""
    return "\n".join(embedded.standard_library(held_out=True))


@cache
def line_starts() -> list[int]:
    """Return where in the embedded text its lines start, empty ones left out."""
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
    if metadata.get("num_samples") is not None:
        check_count("long_ppl", "num_samples", metadata)
    for name in ("data", "subset", "split", "column"):
        if metadata.get(name) is not None and (not isinstance(metadata[name], str) or not metadata[name]):
            raise wrong_option("long_ppl", name, "a string", metadata)
    if metadata.get("data") is None and (metadata.get("num_samples") or 0) > len(line_starts()):
        allowed = f"at most {len(line_starts())}, the number of lines of the held-out text"
        raise wrong_option("long_ppl", "num_samples", allowed, metadata)


def long_ppl_dataset(
    *,
    length: int,
    num_samples: int | None = None,
    lengths: list[int] | None = None,
    data: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    column: str | None = None,
    **model_args: Any,
) -> dict[str, Dataset]:
    """Build the samples of one length.

    A document serves all lengths: it has the longest of them and a tail. Its first `length` tokens are the whole
    input; the tail, the same text at every length, follows the `length` tokens before it.

    Args:
        length: Tokens of an input as lm-eval encodes it, special tokens included. An input never has more, and a few
            less where one character more makes several tokens of it.
        num_samples: How many documents; None: as many as there are, at most 20.
        lengths: All lengths that are to use the same documents; `length` need not be among them.
        data: Where documents come from, see the README; None: the embedded text.
        subset: Configuration of a data set on the hub.
        split: Its split.
        column: The column that holds the text.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns text (the whole input), starts (where in it, in characters, each measured
        stretch starts), counts (tokens before each of them, then all tokens), edges (the positions asked for, then the
        length), context and tail, tail_tokens, length (as asked), tokens (as counted), source, source_sha256 and
        documents_dropped.

    Raises:
        UsageError: An option is wrong, the source cannot be read, too few documents are long enough, or the length is
            too short for any text.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    check_options(model_args | {"num_samples": num_samples, "data": data})
    count = token_counter(load_tokenizer(model_args), model_args.get("add_bos_token"))
    longest = max([length, *(lengths or [])])
    wanted = [("data", data), ("subset", subset), ("split", split), ("column", column)]
    found = _documents(tuple(value for _, value in wanted), _state(data), longest, num_samples, count)
    origin = ", ".join(f"{name}={value}" for name, value in wanted if value) or EMBEDDED
    common = {"source": origin, "source_sha256": found.sha256, "documents_dropped": found.dropped}
    docs = [sample(head, tail, length, count) | common for head, tail in found.texts]
    return {"test": Dataset.from_list(docs)}


def sample(head: str, tail: str, length: int, count: Count) -> dict[str, Any]:
    """Cut one document for one length.

    Args:
        head: What comes before the tail, at least as many tokens as the longest input.
        tail: What follows.
        length: Tokens.
        count: From a text to its number of tokens.

    Returns:
        The sample; `long_ppl_dataset` describes it.
    """
    text = longest_piece(head, length, count)
    edges = [edge for edge in _doubling(length) if edge + TAIL // 2 <= length]
    starts = [_first_word_end(text)] + [_last_word_end(longest_piece(text, edge, count)) for edge in edges]
    tokens = count(text)
    counts = [count(text[:start]) for start in starts]
    if counts[0] >= tokens:
        raise _too_short(length, count(head[: _first_word_end(head)]) + 1)
    context = longest_piece(head, length, count, from_end=True)
    return {
        "text": text,
        "starts": starts,
        "counts": [*counts, tokens],
        "edges": [0, *edges, length],
        "context": context,
        "tail": tail,
        "tail_tokens": count(context + tail) - count(context),
        "length": length,
        "tokens": tokens,
    }


@lru_cache(maxsize=2)
def _documents(
    where: tuple[str | None, ...], state: tuple[Any, ...], longest: int, num_samples: int | None, count: Count
) -> Documents:
    """Return the documents that all lengths share, read once; `state` is that of the files they come from."""
    if where[0] is None:
        return _embedded(longest, num_samples or NUM_SAMPLES, count)
    return _selected(where, longest, num_samples, count)


def _state(data: str | None) -> tuple[Any, ...]:
    """Return what changes when a local file or folder does."""
    if data is None:
        return ()
    path = Path(data).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


def _embedded(longest: int, num_samples: int, count: Count) -> Documents:
    """Cut documents from the embedded text at evenly spaced lines; after its end its beginning follows."""
    source, starts = source_text(), line_starts()
    texts = []
    for i in range(num_samples):
        start = starts[i * len(starts) // num_samples]
        cut = _cut(source[start:] + source[:start], longest, count)
        if isinstance(cut, int):
            raise UsageError(
                f"long_ppl: a length of {longest} tokens and a tail of {TAIL} are longer than the whole held-out text; "
                f"with this tokenizer a length must be below {cut - TAIL}"
            )
        texts.append(cut)
    return Documents(tuple(texts), 0, sha256(source.encode()).hexdigest())


def _selected(where: tuple[str | None, ...], longest: int, num_samples: int | None, count: Count) -> Documents:
    """Take the first documents of a source that are long enough.

    Raises:
        UsageError: There are too few.
    """
    wanted = num_samples or NUM_SAMPLES
    texts: list[tuple[str, str]] = []
    short: list[int] = []
    digest = sha256()
    for text in tqdm(sources.read_documents(*where), desc=f"Documents of {longest} + {TAIL} tokens", unit=" read"):
        digest.update(f"{text}\0".encode())
        if len(texts) == wanted:
            continue  # for the digest, which is not to depend on tokenizer and lengths
        cut = _cut(text, longest, count)
        if isinstance(cut, int):
            short.append(cut)
        else:
            texts.append(cut)
    if len(texts) < (num_samples or 1):
        has = f"the shorter ones have {min(short)} to {max(short)} tokens, half of them {median(short):.0f} or less"
        raise UsageError(
            f"long_ppl: {num_samples or 'at least 1'} documents of {longest + TAIL} tokens (the longest of lengths and "
            f"a tail of {TAIL}) are needed; data {where[0]!r} holds {len(texts)}{f'; {has}' if short else ''}; "
            "lower lengths or num_samples"
        )
    logger.info(
        "long_ppl: %d documents in use, %d passed over as shorter than %d tokens",
        len(texts),
        len(short),
        longest + TAIL,
    )
    return Documents(tuple(texts), len(short), digest.hexdigest())


def _cut(text: str, longest: int, count: Count) -> tuple[str, str] | int:
    """Return a document's first `longest` tokens and its tail, or how many tokens it has if they are too few."""
    # The tail starts after a whole word, so that the tokens before it are the same without it; and lm-eval moves space
    # at the end of a context into the continuation.
    end = len(longest_piece(text, longest, count))
    end += len(_WORD.match(text[end : end + 10 * WORD]).group())  # type: ignore[union-attr]  # it matches nothing, too
    document = longest_piece(text, count(text[:end]) + TAIL, count)
    if len(document) == len(text) and count(text) < count(text[:end]) + TAIL:
        return count(text)
    return text[:end], document[end:]


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
        raise _too_short(length, count(piece(1)))
    return piece(cut)


def _too_short(length: int, least: int) -> UsageError:
    return UsageError(
        f"long_ppl: a length of {length} tokens is too short for any text; "
        f"with this tokenizer it must be at least {least}"
    )


def _doubling(length: int) -> Iterator[int]:
    edge = TAIL
    while edge < length:
        yield edge
        edge *= 2


def _last_word_end(text: str) -> int:
    """Return where the last word ends that is whole for sure.

    Most tokenizers encode a text up to there as they do within a longer text, and lm-eval moves the space after a
    context into the continuation.
    """
    cut = re.search(rf"\s+\S{{0,{WORD}}}$", text)
    return cut.start() if cut and cut.start() else len(text.rstrip())


def _first_word_end(text: str) -> int:
    """Return where the first word ends: something to predict from."""
    word = re.match(rf"\s*\S{{1,{WORD}}}", text)
    return word.end() if word else len(text)
