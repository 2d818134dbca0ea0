"""The stretches of text whose tokens LongPPL scores, as a file holds them for all models and methods."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from mesa_lm.errors import UsageError


class KeyDocument(NamedTuple):
    """The key spans of one document.

    Attributes:
        place: Which document of the source it is, from 0; of the embedded text, the character it starts at.
        characters: How many of its characters, from its beginning, the evaluator was given.
        spans: From one character to before another, ascending, within those.
    """

    place: int
    characters: int
    spans: tuple[tuple[int, int], ...]


class KeySpans(NamedTuple):
    """What a file of key spans holds.

    Attributes:
        evaluator: The model by which tokens were told to be key.
        trunc_len: Tokens of the short context.
        stride: Tokens that have one short context in common.
        source_sha256: Of the text, as long_ppl tells it.
        documents: Those that the evaluator was given.
    """

    evaluator: str
    trunc_len: int
    stride: int
    source_sha256: str
    documents: tuple[KeyDocument, ...]

    def as_json(self) -> str:
        """Return what the file holds."""
        documents = [document._asdict() for document in self.documents]
        return json.dumps({**self._asdict(), "documents": documents}) + "\n"

    @property
    def digest(self) -> str:
        """A hash by which results name it."""
        return sha256(self.as_json().encode()).hexdigest()


def read_key_spans(path: str) -> KeySpans:
    """Read a file that `mesa-lm key-spans` wrote.

    Raises:
        UsageError: There is no such file, or it is of another kind.
    """
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"long_ppl: key_spans {path!r} cannot be read: {reason}") from None
    try:
        return KeySpans(**{**content, "documents": tuple(map(_document, content["documents"]))})
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"long_ppl: key_spans {path!r} must be a file that `mesa-lm key-spans` wrote") from None


def _document(content: Any) -> KeyDocument:
    spans = tuple((int(start), int(end)) for start, end in content["spans"])
    return KeyDocument(int(content["place"]), int(content["characters"]), spans)
