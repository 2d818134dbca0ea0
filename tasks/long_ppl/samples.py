"""Build the samples of long_ppl: a whole input of an exact length in tokens, and a tail that all lengths share."""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import COUNT, FLAG, TEXT, OptionRules, check_task_options, wrong_option
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.tasks.long_ppl import embedded_text
from mesa_lm.tasks.long_ppl.cutting import Count, first_word_end, last_word_end, longest_piece, too_short
from mesa_lm.tasks.long_ppl.documents import TAIL, Documents, documents, logger
from mesa_lm.tasks.long_ppl.key_spans import KeySpans, read_key_spans
from mesa_lm.tasks.long_ppl.sources import Source

EMBEDDED = "held-out files of the Python standard library"
RULES: OptionRules = {
    "num_samples": COUNT.or_none(),
    **dict.fromkeys(("data", "subset", "split", "column", "key_spans"), TEXT.or_none()),
    "one_per_document": FLAG,
}


def check_options(metadata: Mapping[str, Any]) -> None:
    """Check the options of long_ppl before anything is loaded; the README describes them.

    Args:
        metadata: The user's metadata, the arguments of the model among it.

    Raises:
        UsageError: An option is misspelt, of the wrong type or out of range.
    """
    check_task_options("long_ppl", RULES, metadata)
    number = metadata.get("num_samples")
    if metadata.get("key_spans") is not None:
        read_key_spans(metadata["key_spans"])
    if metadata.get("data") is None and number and number > (lines := len(embedded_text.line_starts())):
        allowed = f"at most {lines}, the number of lines of the held-out text"
        raise wrong_option("long_ppl", "num_samples", allowed, number)


def long_ppl_dataset(
    *,
    length: int,
    num_samples: int | None = None,
    lengths: list[int] | None = None,
    data: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    column: str | None = None,
    one_per_document: bool = False,
    key_spans: str | None = None,
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
        one_per_document: Take the beginning of each document alone; else, where there are fewer of them than
            `num_samples`, several windows of the long ones.
        key_spans: A file of the stretches whose tokens `key_ppl` is of. Its documents are those to choose from, each
            from its beginning.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns text (the whole input), starts (where in it, in characters, each measured
        stretch starts), counts (tokens before each of them, then all tokens), edges (the positions asked for, then the
        length), context and tail, tail_tokens, length (as asked), tokens (as counted), source, source_sha256,
        documents_dropped and overlapping (samples that overlap the one before). With `key_spans` also key_spans, those
        within the text, from one character to before another, evaluator and key_spans_sha256.

    Raises:
        UsageError: An option is wrong, the source cannot be read, too few documents are long enough, or the length is
            too short for any text.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    given = {"num_samples": num_samples, "data": data, "one_per_document": one_per_document, "key_spans": key_spans}
    check_options(model_args | given)
    count = task_encoding(model_args).count
    source = None if data is None else Source(data, subset, split, column)
    keys = read_key_spans(key_spans) if key_spans else None
    only = tuple(document.place for document in keys.documents) if keys else None
    longest = max([length, *(lengths or [])])
    found = documents(source, longest, num_samples, count, one_per_document or keys is not None, only)
    common = {
        "source": str(source or EMBEDDED),
        "source_sha256": found.sha256,
        "documents_dropped": found.dropped,
        "overlapping": found.overlapping,
    }
    docs = [sample(head, tail, length, count) | common for head, tail in found.texts]
    if keys:
        docs = with_key_spans(docs, found, keys)
    return {"test": Dataset.from_list(docs)}


def with_key_spans(docs: list[dict[str, Any]], found: Documents, keys: KeySpans) -> list[dict[str, Any]]:
    """Add to samples the key spans within their texts.

    Args:
        docs: The samples.
        found: The documents that they are of.
        keys: Key spans of these documents, and others.

    Raises:
        UsageError: They are of another text, or of too few characters of it.
    """
    if keys.source_sha256 != found.sha256:
        raise UsageError(
            f"long_ppl: key_spans are of a text with the SHA-256 {keys.source_sha256[:12]}..., and the data have "
            f"{found.sha256[:12]}...; make them again with `mesa-lm key-spans`"
        )
    by_place = {document.place: document for document in keys.documents}
    added = []
    for doc, place in zip(docs, found.places, strict=True):
        document, end = by_place[place], len(doc["text"])
        if end > document.characters:
            raise UsageError(
                f"long_ppl: key_spans cover the first {document.characters} characters of document {place}, and its "
                f"first {doc['length']} tokens are {end}; make them again with a longer --length"
            )
        spans = [list(span) for span in document.spans if span[1] <= end]
        added.append({**doc, "key_spans": spans, "evaluator": keys.evaluator, "key_spans_sha256": keys.digest})
    if not any(doc["key_spans"] for doc in added):
        logger.warning(
            "long_ppl: no token of the first %d is key, so that there is no key_ppl; the first %d tokens of the "
            "evaluator never are",
            docs[0]["length"],
            keys.trunc_len,
        )
    return added


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
    starts = [first_word_end(text)] + [last_word_end(longest_piece(text, edge, count)) for edge in edges]
    tokens = count(text)
    counts = [count(text[:start]) for start in starts]
    if counts[0] >= tokens:
        raise too_short(length, count(head[: first_word_end(head)]) + 1)
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


def _doubling(length: int) -> Iterator[int]:
    edge = TAIL
    while edge < length:
        yield edge
        edge *= 2
