"""The documents that all lengths of long_ppl share, and the tail of each."""

import logging
import re
from collections.abc import Sequence
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
from mesa_lm.tasks.long_ppl.windows import window_starts, windows_per_document

# Below lm-eval's logger, because that one alone has a handler in an lm_eval run.
logger = logging.getLogger("lm_eval.tasks.long_ppl")

TAIL = 256  # tokens
NUM_SAMPLES = 20
# Tokens beyond the longest input and its tail that a window may take, because both end with whole words.
SLACK = 32

_WORD = re.compile(rf"\s*\S{{0,{WORD}}}")


class Documents(NamedTuple):
    """The documents that are long enough, cut to the longest input and its tail.

    Attributes:
        texts: (heads, tails): what comes before a tail, and the tail.
        dropped: Documents passed over because they are too short.
        overlapping: Texts that begin before the one before them ends.
        places: Of the documents in use, as key spans name them: numbers in the source, from 0, or the characters of
            the embedded text that they start at.
        sha256: Of the source as a whole, whichever of its documents are in use: of the embedded text, or of all
            documents, each followed by a null character.
    """

    texts: tuple[tuple[str, str], ...]
    dropped: int
    overlapping: int
    places: tuple[int, ...]
    sha256: str


def documents(
    source: Source | None,
    longest: int,
    num_samples: int | None,
    count: Count,
    one_per_document: bool = False,
    only: tuple[int, ...] | None = None,
) -> Documents:
    """Return the documents that all lengths share, read once as long as local ones do not change.

    Args:
        source: Where they come from; None: the embedded text.
        longest: The longest of the lengths, tokens.
        num_samples: How many documents; None: as many as there are, at most 20.
        count: From a text to its number of tokens.
        one_per_document: Take the beginning of each document alone; else, where there are too few of them, several
            windows of the long ones.
        only: The places of the documents to choose from; None: all.

    Raises:
        UsageError: The source cannot be read, or too few documents are long enough.
    """
    return _documents(source, _state(source), longest, num_samples, count, one_per_document, only)


@lru_cache(maxsize=2)
def _documents(
    source: Source | None,
    state: tuple[Any, ...],
    longest: int,
    num_samples: int | None,
    count: Count,
    one_per_document: bool,
    only: tuple[int, ...] | None,
) -> Documents:
    if source is None:
        return _embedded(longest, num_samples, count, only)
    return _selected(source, longest, num_samples, count, one_per_document, only)


def source_digest(source: Source | None) -> str:
    """Return the SHA-256 of a source as a whole, which `Documents` has, too; None: of the embedded text."""
    if source is None:
        return sha256(embedded_text.held_out_text().encode()).hexdigest()
    digest = sha256()
    for text in read_documents(source):
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


def embedded_starts(number: int) -> tuple[int, ...]:
    """Return where documents of the embedded text start, so many, evenly spaced over its lines."""
    starts = embedded_text.line_starts()
    return tuple(starts[i * len(starts) // number] for i in range(number))


def _state(source: Source | None) -> tuple[Any, ...]:
    """Return what changes when a local file or folder does."""
    if source is None:
        return ()
    path = Path(source.data).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


def _embedded(longest: int, num_samples: int | None, count: Count, only: tuple[int, ...] | None) -> Documents:
    """Cut documents from the embedded text at evenly spaced lines; after its end its beginning follows."""
    text = embedded_text.held_out_text()
    starts = only[:num_samples] if only else embedded_starts(num_samples or NUM_SAMPLES)
    texts, overlapping, end = [], 0, 0
    for start in starts:
        cut = _cut(text[start:] + text[:start], longest, count)
        if isinstance(cut, int):
            raise UsageError(
                f"long_ppl: a length of {longest} tokens and a tail of {TAIL} are longer than the whole held-out text; "
                f"with this tokenizer a length must be below {cut - TAIL}"
            )
        texts.append(cut)
        overlapping += start < end
        end = start + sum(map(len, cut))
    overlapping += len(starts) > 1 and end > len(text) + starts[0]  # the last one goes on where the first one starts
    return Documents(tuple(texts), 0, overlapping, starts, source_digest(None))


def _selected(
    source: Source,
    longest: int,
    num_samples: int | None,
    count: Count,
    one_per_document: bool,
    only: tuple[int, ...] | None,
) -> Documents:
    """Take the first documents of a source that are long enough, or several windows of each where they are too few.

    Raises:
        UsageError: There is too little text.
    """
    window, wanted = longest + TAIL, num_samples or NUM_SAMPLES
    chosen: list[str] = []
    texts: list[tuple[str, str]] = []
    places: list[int] = []
    short: list[int] = []
    digest = sha256()
    read = tqdm(read_documents(source), desc=f"Documents of {longest} + {TAIL} tokens", unit=" read")
    for place, text in enumerate(read):
        digest.update(f"{text}\0".encode())
        if len(texts) == wanted or (only is not None and place not in only):
            continue  # for the digest, which is not to depend on tokenizer and lengths
        cut = _cut(text, longest, count)
        if isinstance(cut, int):
            short.append(cut)
        else:
            chosen.append(text)
            texts.append(cut)
            places.append(place)
    overlapping = 0
    if texts and len(texts) < (num_samples or 1) and not one_per_document:
        texts, overlapping = _windows(chosen, longest, wanted, count)
    if len(texts) < (num_samples or 1):
        lengths = f"have {min(short)} to {max(short)} tokens, half of them {median(short):.0f} or less" if short else ""
        what = "documents, or windows of long ones," if texts and not one_per_document else "documents"
        raise UsageError(
            f"long_ppl: {num_samples or 'at least 1'} {what} of {window} tokens (the longest of lengths and "
            f"a tail of {TAIL}) are needed; data {source.data!r} holds {len(texts)}"
            f"{f'; the shorter ones {lengths}' if short else ''}; lower lengths or num_samples"
        )
    logger.info(
        "long_ppl: %d documents in use, %d passed over as shorter than %d tokens", len(chosen), len(short), window
    )
    if overlapping:
        logger.warning(
            "long_ppl: %d of %d samples overlap the one before, so that standard errors are too small: %s has too "
            "little text for windows of %d tokens",
            overlapping,
            len(texts),
            source.data,
            window,
        )
    return Documents(tuple(texts), len(short), overlapping, tuple(places), digest.hexdigest())


def _windows(chosen: Sequence[str], longest: int, wanted: int, count: Count) -> tuple[list[tuple[str, str]], int]:
    """Cut several windows from documents, by document and then by place.

    Returns:
        As many as are wanted, or fewer where there is too little text, and how many of them overlap the one before.
    """
    window = longest + TAIL + SLACK
    tokens = [max(count(text), window) for text in chosen]
    texts, overlapping = [], 0
    for text, number in zip(chosen, windows_per_document(tokens, window, wanted), strict=True):
        end = 0
        for start in window_starts(text, number, window, count):
            cut = _cut(text[start:], longest, count)
            if isinstance(cut, int):
                continue  # its words take more tokens than the slack
            texts.append(cut)
            overlapping += start < end
            end = start + sum(map(len, cut))
    return texts, overlapping


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
