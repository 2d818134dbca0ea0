"""The documents that all lengths of long_ppl share, and the tail of each."""

import logging
import re
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tqdm import tqdm  # type: ignore[import-untyped]

from mesa_lm.errors import UsageError
from mesa_lm.tasks.long_ppl import embedded_text
from mesa_lm.tasks.long_ppl.cutting import WORD, Count, longest_piece
from mesa_lm.tasks.long_ppl.sources import Source, read_documents

# Below lm-eval's logger, because that one alone has a handler in an lm_eval run.
logger = logging.getLogger("lm_eval.tasks.long_ppl")

TAIL = 256  # tokens
NUM_SAMPLES = 20

_WORD = re.compile(rf"\s*\S{{0,{WORD}}}")


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


def documents(source: Source | None, longest: int, num_samples: int | None, count: Count) -> Documents:
    """Return the documents that all lengths share, read once as long as local ones do not change.

    Args:
        source: Where they come from; None: the embedded text.
        longest: The longest of the lengths, tokens.
        num_samples: How many documents; None: as many as there are, at most 20.
        count: From a text to its number of tokens.

    Raises:
        UsageError: The source cannot be read, or too few documents are long enough.
    """
    return _documents(source, _state(source), longest, num_samples, count)


@lru_cache(maxsize=2)
def _documents(
    source: Source | None, state: tuple[Any, ...], longest: int, num_samples: int | None, count: Count
) -> Documents:
    if source is None:
        return _embedded(longest, num_samples or NUM_SAMPLES, count)
    return _selected(source, longest, num_samples, count)


def _state(source: Source | None) -> tuple[Any, ...]:
    """Return what changes when a local file or folder does."""
    if source is None:
        return ()
    path = Path(source.data).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


def _embedded(longest: int, num_samples: int, count: Count) -> Documents:
    """Cut documents from the embedded text at evenly spaced lines; after its end its beginning follows."""
    text, starts = embedded_text.held_out_text(), embedded_text.line_starts()
    texts = []
    for i in range(num_samples):
        start = starts[i * len(starts) // num_samples]
        cut = _cut(text[start:] + text[:start], longest, count)
        if isinstance(cut, int):
            raise UsageError(
                f"long_ppl: a length of {longest} tokens and a tail of {TAIL} are longer than the whole held-out text; "
                f"with this tokenizer a length must be below {cut - TAIL}"
            )
        texts.append(cut)
    return Documents(tuple(texts), 0, sha256(text.encode()).hexdigest())


def _selected(source: Source, longest: int, num_samples: int | None, count: Count) -> Documents:
    """Take the first documents of a source that are long enough.

    Raises:
        UsageError: There are too few.
    """
    wanted = num_samples or NUM_SAMPLES
    texts: list[tuple[str, str]] = []
    short: list[int] = []
    digest = sha256()
    for text in tqdm(read_documents(source), desc=f"Documents of {longest} + {TAIL} tokens", unit=" read"):
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
            f"a tail of {TAIL}) are needed; data {source.data!r} holds {len(texts)}{f'; {has}' if short else ''}; "
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
