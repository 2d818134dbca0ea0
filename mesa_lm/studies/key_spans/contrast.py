"""Find the tokens whose loss falls where an evaluator model is given all of the text before them.

Source: Fang et al. 2025, *What is Wrong with Perplexity for Long-context Language Modeling?*, ICLR,
https://arxiv.org/abs/2410.23771; constants and the sliding of the short context as in github.com/PKU-ML/LongPPL.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.harness.log_likelihood import token_log_probs
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.model_args import check_device, check_host_args, checked_source
from mesa_lm.harness.offsets import merged
from mesa_lm.reporting.lm_eval_files import DEMO_NAME
from mesa_lm.tasks.long_ppl.cutting import longest_piece
from mesa_lm.tasks.long_ppl.documents import embedded_starts, source_digest
from mesa_lm.tasks.long_ppl.embedded_text import held_out_text
from mesa_lm.tasks.long_ppl.key_spans import KeyDocument, KeySpans
from mesa_lm.tasks.long_ppl.sources import Source, read_documents

LEAST_GAIN = 2.0  # nats by which the whole context lowers the loss of a key token
MOST_LOSS = 2.0  # nats that a key token has under the whole context, at most


def find_key_spans(
    *,
    model: str | None,
    source: Source | None,
    num_samples: int,
    length: int | None,
    trunc_len: int,
    stride: int,
    device: str,
    dtype: str,
    progress: Callable[[str], None],
) -> KeySpans:
    """Find the key spans of documents.

    Args:
        model: Folder or name on the hub of the evaluator; None: the demo model.
        source: Where the documents come from; None: the embedded text, of which `length` tokens each are taken.
        num_samples: How many documents, the first ones that have more than `trunc_len` tokens, and `length` if given.
        length: The evaluator's tokens of a document that it is given; None: all.
        trunc_len: Tokens of the short context.
        stride: Tokens that have one short context in common.
        device: As for `torch.device`, by name; "auto": CUDA if there is one.
        dtype: Of the weights, by name; "auto": as they are saved.
        progress: Told what is being done.

    Raises:
        MesaError: Something given cannot be used, or too few documents are long enough.
    """
    if length is not None and length <= trunc_len:
        raise UsageError(f"key-spans: --length must be above --trunc-len, {trunc_len}; found {length}")
    if source is None and length is None:
        raise UsageError("key-spans: the embedded text needs --length, tokens of each document")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    check_host_args({"dtype": dtype})
    lm = MesaHFLM(pretrained=checked_source(model or str(MODEL_PATH)), method="origin", device=device, dtype=dtype)
    documents: list[KeyDocument] = []
    for place, text in _pieces(lm, _texts(source, num_samples), length, trunc_len):
        progress(f"document {len(documents) + 1} of {num_samples}")
        documents.append(key_document(lm, place, text, trunc_len, stride))
        if len(documents) == num_samples:
            return KeySpans(model or DEMO_NAME, trunc_len, stride, source_digest(source), tuple(documents))
    raise UsageError(
        f"key-spans: {num_samples} documents of at least {length or trunc_len + 1} tokens are needed, and there are "
        f"{len(documents)}; lower --num-samples, --length or --trunc-len"
    )


def key_document(lm: MesaHFLM, place: int, text: str, trunc_len: int, stride: int) -> KeyDocument:
    """Find the key spans of one document.

    Args:
        lm: The evaluator.
        place: Which document it is.
        text: As much of it as is looked at.
        trunc_len: Tokens of the short context.
        stride: Tokens that have one short context in common.
    """
    tokens, offsets = lm.encoded_with_offsets(text)
    keys = key_tokens(lm, tokens, trunc_len, stride)
    return KeyDocument(place, len(text), tuple(merged([offsets[i] for i in keys])))


def key_tokens(lm: MesaHFLM, tokens: Sequence[int], trunc_len: int, stride: int) -> list[int]:
    """Return which tokens are key: those of a low loss that is far higher under a short context.

    The short context of a token begins at the last multiple of `stride` that leaves it at least `trunc_len` tokens.

    Args:
        lm: The evaluator.
        tokens: Of a document.
        trunc_len: Tokens of the short context.
        stride: Tokens that have one short context in common.
    """
    whole = _losses(lm, tokens, trunc_len)
    starts = range(0, len(tokens) - trunc_len, stride)
    short = torch.cat([_losses(lm, tokens[start : start + trunc_len + stride], trunc_len) for start in starts])
    is_key = (short - whole > LEAST_GAIN) & (whole < MOST_LOSS)
    return [trunc_len + i for i in is_key.nonzero().flatten().tolist()]


def _losses(lm: MesaHFLM, tokens: Sequence[int], given: int) -> Tensor:
    """Return the loss of each token after the first few that are given, in nats."""
    wanted = list(tokens[given:])
    states, head = lm.scored_states([(None, list(tokens[:given]), wanted)])
    with torch.inference_mode():
        return -token_log_probs(states[0], wanted, torch.float32, head)[0].cpu()


def _texts(source: Source | None, number: int) -> Iterator[tuple[int, str]]:
    if source is not None:
        yield from enumerate(read_documents(source))
        return
    text = held_out_text()
    yield from ((start, text[start:] + text[:start]) for start in embedded_starts(number))


def _pieces(
    lm: MesaHFLM, texts: Iterator[tuple[int, str]], length: int | None, trunc_len: int
) -> Iterator[tuple[int, str]]:
    """Yield the beginnings of documents that are long enough, `length` tokens each, or all of it."""

    def count(text: str) -> int:
        return len(lm.tok_encode(text))

    for place, text in texts:
        piece = text if length is None else longest_piece(text, length, count)
        if count(piece) > trunc_len and (length is None or piece != text or count(piece) == length):
            yield place, piece
