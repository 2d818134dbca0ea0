"""Measure at which input length a method fails: passkey retrieval, and the loss of a text's last tokens."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesa_lm.errors import UsageError
from mesa_lm.methods.base import Method
from mesa_lm.models.attach import extrapolate
from mesa_lm.reporting.results import read
from mesa_lm.tasks.long_ppl.samples import long_ppl_dataset
from mesa_lm.tasks.passkey_long.questions import passkey_dataset, score

STEPS_PER_DOUBLING = 3
BATCH_TOKENS = 16384  # tokens that go through the model together, at least one sample
PASSKEY = "passkey_long"
MAX_ANSWER_TOKENS = 32  # as the passkey_long task
TAIL_TOKENS = 256  # tokens whose loss is measured, at most half of T
LOST_SHARE = 0.5
ADDED_NLL = 0.5  # nats per token
USABLE_ACCURACY = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCurve:
    """Hold what was measured of a method.

    Args:
        values: Length in tokens to passkey accuracy or to the loss in nats per token, ascending; it ends at the
            failure.
        failed_at: The first length that failed; None if none did.
    """

    values: dict[int, float]
    failed_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Hold what is measured.

    Attributes:
        model: Without a method attached.
        tokenizer: The model's.
        methods: By name, with "origin".
        lengths: Ascending, the first one T; tokens.
        samples: Questions and texts at each length.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    methods: Mapping[str, Method]
    lengths: Sequence[int]
    samples: int

    def reference(self, measure: Callable[[int], float]) -> float:
        """Measure the untouched model at T."""
        with extrapolate(self.model, self.methods["origin"]):
            return measure(self.lengths[0])

    def curves(self, measure: Callable[[int], float], fails: Callable[[float], bool]) -> dict[str, FailureCurve]:
        """Measure under every method until it fails."""
        curves = {}
        for name, method in self.methods.items():
            with extrapolate(self.model, method):
                curves[name] = until_failure(self.lengths, measure, fails)
        return curves


def lengths_up_to(train_length: int, multiple: int) -> list[int]:
    """Return the lengths to measure at: from T to its multiple, three steps to each doubling."""
    steps = math.floor(STEPS_PER_DOUBLING * math.log2(multiple))
    return [round(train_length * 2 ** (step / STEPS_PER_DOUBLING)) for step in range(steps + 1)]


def until_failure(
    lengths: Sequence[int], measure: Callable[[int], float], fails: Callable[[float], bool]
) -> FailureCurve:
    """Measure from the first length on and stop where it fails: what lies beyond does not change the answer."""
    values: dict[int, float] = {}
    for length in lengths:
        values[length] = measure(length)
        if fails(values[length]):
            return FailureCurve(values=values, failed_at=length)
    return FailureCurve(values=values, failed_at=None)


def passkey_curves(subject: Subject) -> dict[str, FailureCurve]:
    """Measure passkey accuracy, greedy, with the questions of the passkey_long task.

    A length fails where the accuracy is below half of the untouched model's at T.

    Returns:
        By name; nothing if the untouched model is right less than half of the time at T already.

    Raises:
        UsageError: T is too short for the fixed texts.
    """
    model, tokenizer = subject.model, subject.tokenizer
    options: dict[str, Any] = {"num_samples": subject.samples, "depths": None, "prompt": "plain", "seed": 0}

    def measure(length: int) -> float:
        docs = list(passkey_dataset(length=length, tokenizer=tokenizer, **options)["test"])
        rows = [tokenizer(doc["prompt"])["input_ids"] for doc in docs]
        answers = tokenizer.batch_decode(generate_answers(model, tokenizer, rows), skip_special_tokens=True)
        return fmean(score(doc, [answer])["acc"] for doc, answer in zip(docs, answers, strict=True))

    reference = subject.reference(measure)
    if reference < USABLE_ACCURACY:
        return {}
    return subject.curves(measure, lambda accuracy: accuracy < LOST_SHARE * reference)


def tail_curves(subject: Subject) -> dict[str, FailureCurve]:
    """Measure the mean loss of the last tokens of held-out texts, which are the same ones at every length.

    A length fails where the loss is more than 0.5 nats per token above that of the untouched model at T.

    Returns:
        By name.

    Raises:
        UsageError: The held-out text of the long_ppl task is too short.
    """
    tokenizer, lengths = subject.tokenizer, subject.lengths
    docs = long_ppl_dataset(length=lengths[-1], num_samples=subject.samples, tokenizer=tokenizer)["test"]
    texts = [tokenizer(doc["text"], add_special_tokens=False)["input_ids"] for doc in docs]
    # A text may fall short of the longest length by a token or two; a batch needs equal ones.
    shortest = min(map(len, texts))
    texts = [text[-shortest:] for text in texts]
    first = [token for token in tokenizer("a")["input_ids"][:1] if token == tokenizer.bos_token_id]
    tail = min(TAIL_TOKENS, lengths[0] // 2)

    def measure(length: int) -> float:
        return tail_nll(subject.model, [first + text[-(length - len(first)) :] for text in texts], tail)

    reference = subject.reference(measure)
    return subject.curves(measure, lambda nll: nll > reference + ADDED_NLL)


def saved_passkey_curves(path: Path, names: Sequence[str], train_length: int) -> dict[str, FailureCurve]:
    """Read passkey accuracy from results of lm-eval, where methods have no parameters set.

    Args:
        path: A results file, or a folder that holds some.
        names: Of the methods.
        train_length: T in tokens.

    Returns:
        By name, for the methods that the results hold; nothing if origin's accuracy within T is below one half.

    Raises:
        UsageError: A file is damaged, or the results are of several models, or lack origin within T.
    """
    results = read([path])
    if results.problems:
        raise UsageError(results.problems[0])
    accuracy = results.select("acc", PASSKEY if PASSKEY in set(results.table.task) else None).table
    models = sorted(set(accuracy.model))
    if len(models) > 1:
        raise UsageError(f"{path}: results of one model are needed; found {', '.join(models)}")
    of_method = accuracy.set_index("method")[["length", "value"]]
    points = {name: dict(of_method.loc[of_method.index == name].itertuples(index=False, name=None)) for name in names}
    within = [length for length in points["origin"] if length <= train_length]
    if not within:
        raise UsageError(f"{path}: no accuracy of origin at T={train_length} or below, which failure is told from")
    reference = points["origin"][max(within)]
    if reference < USABLE_ACCURACY:
        return {}
    return {
        name: until_failure(
            sorted(length for length in values if length >= max(within)),
            values.__getitem__,
            lambda accuracy: accuracy < LOST_SHARE * reference,
        )
        for name, values in points.items()
        if values
    }


def generate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]]
) -> list[list[int]]:
    """Continue prompts greedily, padded on the left."""
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    generate: Any = model.generate  # which transformers mixes in
    answers: list[list[int]] = []
    for batch in _batches(rows):
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=model.device)
        with torch.no_grad():
            output = generate(
                ids, attention_mask=mask, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False, pad_token_id=pad
            )
        answers.extend(output[:, width:].tolist())
    return answers


def tail_nll(model: PreTrainedModel, rows: Sequence[list[int]], tail: int) -> float:
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
