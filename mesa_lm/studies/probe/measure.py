"""Measure at which input length a method fails: passkey retrieval, and the loss of a text's last tokens."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesa_lm.errors import UsageError
from mesa_lm.methods.base import Method
from mesa_lm.models.attach import extrapolate
from mesa_lm.reporting.results import read, select
from mesa_lm.tasks.long_ppl.samples import long_ppl_dataset
from mesa_lm.tasks.passkey_long.questions import passkey_dataset, score

STEPS_PER_DOUBLING = 3
BATCH_TOKENS = 16384  # tokens that go through the model together, at least one sample
ANSWER_TOKENS = 32  # as the passkey_long task
TAIL = 256  # tokens whose loss is measured, at most half of T
LOST_SHARE = 0.5
ADDED_NLL = 0.5  # nats per token
USABLE_ACCURACY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Hold what was measured of a method.

    Args:
        values: Length in tokens to passkey accuracy or to the loss in nats per token, ascending; it ends at the
            failure.
        failed_at: The first length that failed; None if none did.
    """

    values: dict[int, float]
    failed_at: int | None


def lengths_up_to(train_length: int, multiple: int) -> list[int]:
    """Return the lengths to measure at: from T to its multiple, three steps to each doubling."""
    steps = math.floor(STEPS_PER_DOUBLING * math.log2(multiple))
    return [round(train_length * 2 ** (step / STEPS_PER_DOUBLING)) for step in range(steps + 1)]


def until_failure(lengths: Sequence[int], measure: Callable[[int], float], fails: Callable[[float], bool]) -> Curve:
    """Measure from the first length on and stop where it fails: what lies beyond does not change the answer."""
    values: dict[int, float] = {}
    for length in lengths:
        values[length] = measure(length)
        if fails(values[length]):
            return Curve(values=values, failed_at=length)
    return Curve(values=values, failed_at=None)


def passkey_curves(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    methods: Mapping[str, Method],
    lengths: Sequence[int],
    samples: int,
) -> dict[str, Curve]:
    """Measure passkey accuracy, greedy, with the questions of the passkey_long task.

    A length fails where the accuracy is below half of the untouched model's at T.

    Args:
        model: Without a method attached.
        tokenizer: The model's.
        methods: By name, with "origin".
        lengths: Ascending, the first one T; tokens.
        samples: Questions at each length.

    Returns:
        By name; nothing if the untouched model is right less than half of the time at T already.

    Raises:
        UsageError: T is too short for the fixed texts.
    """

    def measure(length: int) -> float:
        questions = passkey_dataset(
            length=length, num_samples=samples, depths=None, prompt="plain", seed=0, tokenizer=tokenizer
        )
        docs = list(questions["test"])
        rows = [tokenizer(doc["prompt"])["input_ids"] for doc in docs]
        generated = _generate(model, tokenizer, rows)
        answers = [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in generated]
        scores = [score(doc, [answer])["acc"] for doc, answer in zip(docs, answers, strict=True)]
        return float(sum(scores) / len(scores))

    with extrapolate(model, methods["origin"]):
        reference = measure(lengths[0])
    return _curves(model, methods, lengths, measure, _loses_passkeys(reference)) if _is_usable(reference) else {}


def tail_curves(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    methods: Mapping[str, Method],
    lengths: Sequence[int],
    samples: int,
) -> dict[str, Curve]:
    """Measure the mean loss of the last tokens of held-out texts, which are the same ones at every length.

    A length fails where the loss is more than 0.5 nats per token above that of the untouched model at T.

    Args:
        model: Without a method attached.
        tokenizer: The model's.
        methods: By name, with "origin".
        lengths: Ascending, the first one T; tokens.
        samples: Texts.

    Returns:
        By name.

    Raises:
        UsageError: The held-out text of the long_ppl task is too short.
    """
    docs = long_ppl_dataset(length=lengths[-1], num_samples=samples, tokenizer=tokenizer)["test"]
    texts = [tokenizer(doc["text"], add_special_tokens=False)["input_ids"] for doc in docs]
    # A text may fall short of the longest length by a token or two; a batch needs equal ones.
    shortest = min(map(len, texts))
    texts = [text[-shortest:] for text in texts]
    first = [token for token in tokenizer("a")["input_ids"][:1] if token == tokenizer.bos_token_id]
    tail = min(TAIL, lengths[0] // 2)

    def measure(length: int) -> float:
        rows = [first + text[-(length - len(first)) :] for text in texts]
        return _tail_nll(model, rows, tail)

    with extrapolate(model, methods["origin"]):
        reference = measure(lengths[0])
    return _curves(model, methods, lengths, measure, lambda nll: nll > reference + ADDED_NLL)


def saved_passkey_curves(path: Path, names: Sequence[str], train_length: int) -> dict[str, Curve]:
    """Read passkey accuracy from results of lm-eval, where methods have no parameters set.

    Args:
        path: A results file, or a folder that holds some.
        names: Of the methods.
        train_length: T in tokens.

    Returns:
        By name, for the methods that the results hold; nothing if origin's accuracy within T is below one half.

    Raises:
        UsageError: The results are not readable, are of several models, or lack origin within T.
    """
    cells = select(read([path]), "acc")
    models = sorted({cell.model for cell in cells})
    if len(models) > 1:
        raise UsageError(f"{path}: results of one model are needed; found {', '.join(models)}")
    points = {name: {cell.length: cell.value for cell in cells if cell.method == name} for name in names}
    within = [length for length in points["origin"] if length <= train_length]
    if not within:
        raise UsageError(f"{path}: no accuracy of origin at T={train_length} or below, which failure is told from")
    reference = points["origin"][max(within)]
    if not _is_usable(reference):
        return {}
    return {
        name: until_failure(
            sorted(length for length in values if length >= max(within)),
            values.__getitem__,
            _loses_passkeys(reference),
        )
        for name, values in points.items()
        if values
    }


def _is_usable(reference: float) -> bool:
    return reference >= USABLE_ACCURACY


def _loses_passkeys(reference: float) -> Callable[[float], bool]:
    return lambda accuracy: accuracy < LOST_SHARE * reference


def _curves(
    model: PreTrainedModel,
    methods: Mapping[str, Method],
    lengths: Sequence[int],
    measure: Callable[[int], float],
    fails: Callable[[float], bool],
) -> dict[str, Curve]:
    curves = {}
    for name, method in methods.items():
        with extrapolate(model, method):
            curves[name] = until_failure(lengths, measure, fails)
    return curves


def _generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]]) -> list[list[int]]:
    """Continue prompts greedily, padded on the left."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    generate: Any = model.generate  # which transformers mixes in
    answers: list[list[int]] = []
    for batch in _batches(rows):
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=model.device)
        with torch.no_grad():
            output = generate(ids, attention_mask=mask, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=pad)
        answers.extend(output[:, width:].tolist())
    return answers


def _tail_nll(model: PreTrainedModel, rows: Sequence[list[int]], tail: int) -> float:
    """Return the mean loss of the last `tail` tokens of equally long rows, nats per token."""
    total = 0.0
    for batch in _batches(rows):
        ids = torch.tensor(batch, device=model.device)
        with torch.no_grad():
            logits = model(ids, use_cache=False, logits_to_keep=tail + 1).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, -tail:].flatten())
        total += float(loss) * len(batch)
    return total / len(rows)


def _batches(rows: Sequence[list[int]]) -> list[Sequence[list[int]]]:
    size = max(1, BATCH_TOKENS // max(map(len, rows)))
    return [rows[start : start + size] for start in range(0, len(rows), size)]
