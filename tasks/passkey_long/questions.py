"""Build and score passkey retrieval at a given length in tokens."""

import random
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from datasets import Dataset

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import (
    COUNT,
    WHOLE_NUMBER,
    OptionRule,
    OptionRules,
    check_task_options,
    is_count,
    is_shares,
)
from mesa_lm.harness.tokenizing import TextEncoding, task_encoding
from mesa_lm.tasks.number_answers import number_scores
from mesa_lm.tasks.passkey_long import texts

CHAT = "chat"  # the prompt made by the tokenizer's own chat template
MOST_DEPTHS = 1001  # a metric is named by its depth in percent, with one decimal
DEPTHS = OptionRule(
    lambda value: (is_count(value) and value <= MOST_DEPTHS) or is_shares(value),
    f"a whole number from 1 to {MOST_DEPTHS}, or a list of shares from 0 to 1",
)
RULES: OptionRules = {
    "num_samples": COUNT,
    "seed": WHOLE_NUMBER,
    "depths": OptionRule(DEPTHS.or_none().fits, f"null, {DEPTHS.allowed}"),
    "prompt": (*texts.PROMPTS, CHAT),
}
# Called with the user's metadata before anything is loaded; the README describes the options.
check_options = partial(check_task_options, "passkey_long", RULES)
# Fillers on either side of another text that are tokenized with it; what is farther away cannot change its tokens.
EDGE = 4


class Question(NamedTuple):
    """What is hidden, and where: the same for every model and method."""

    key: int
    share: float  # of the filler before the key sentence, 0 to 1


class Prompt(NamedTuple):
    """How a question becomes text: fillers before and after the key sentence."""

    question: Question
    fillers: int

    @property
    def before(self) -> int:
        """Fillers before the key sentence; uniform over 0..fillers where the share is uniform over [0, 1)."""
        return min(int(self.question.share * (self.fillers + 1)), self.fillers)

    @property
    def parts(self) -> tuple[int, int, int]:
        """The key, the fillers before it and the fillers after it."""
        return self.question.key, self.before, self.fillers - self.before


class PromptCounter:
    """Count prompts in tokens without tokenizing them whole.

    Every filler far from the other texts costs the same number of tokens, so a prompt with few fillers tells how many
    tokens one with many has. A tokenizer for which that does not hold (one that merges whole fillers into tokens) is
    noticed, and its prompts are tokenized whole.
    """

    def __init__(self, count_tokens: Callable[[str], int], prefix: str, suffix: str) -> None:
        self.count_tokens = count_tokens
        self.prefix, self.suffix = prefix, suffix
        self._known: dict[tuple[int, int, int], int] = {}
        few = self._count_text(texts.MAX_KEY, EDGE, EDGE)
        self.per_filler = self._count_text(texts.MAX_KEY, EDGE + 1, EDGE) - few
        regular = all(
            self._count_text(texts.MAX_KEY, EDGE + before, EDGE + after) - few == (before + after) * self.per_filler
            for before, after in product((0, 1, 2, EDGE), repeat=2)
        )
        self.edge = EDGE if regular else sys.maxsize

    def text(self, key: int, before: int, after: int) -> str:
        """Return the prompt: the texts joined by single spaces, between prefix and suffix."""
        needle = texts.NEEDLE.format(key=key)
        pieces = [texts.DESCRIPTION, *[texts.FILLER] * before, needle, *[texts.FILLER] * after]
        return self.prefix + " ".join(pieces) + self.suffix

    def count(self, prompt: Prompt) -> int:
        """Return the tokens of a prompt."""
        key, before, after = prompt.parts
        near_before, near_after = min(before, self.edge), min(after, self.edge)
        far = prompt.fillers - near_before - near_after
        return self._count_text(key, near_before, near_after) + far * self.per_filler

    def longest(self, question: Question, length: int) -> Prompt:
        """Return the longest prompt of at most `length` tokens; without any filler it must not be longer."""
        fillers = range(1, length // max(1, self.per_filler) + 2)
        return Prompt(question, bisect_right(fillers, length, key=lambda n: self.count(Prompt(question, n))))

    def _count_text(self, key: int, before: int, after: int) -> int:
        case = (key, before, after)
        if case not in self._known:
            self._known[case] = self.count_tokens(self.text(*case))
        return self._known[case]


def passkey_dataset(
    *,
    length: int,
    num_samples: int,
    depths: int | list[float] | None,
    prompt: str,
    seed: int,
    **model_args: Any,
) -> dict[str, Dataset]:
    """Build the questions of one length.

    Args:
        length: Tokens of the whole prompt as lm-eval feeds it, special tokens included. A prompt is at most so long,
            and less than one filler sentence shorter.
        num_samples: How many questions.
        depths: None for uniform depths, a number of evenly spaced depths, or the depths themselves.
        prompt: Name of the prompt variant.
        seed: Of keys and depths.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns prompt, key, length (as asked), tokens (as counted) and depth (the share of the
        filler that stands before the key sentence, 0 to 1).

    Raises:
        UsageError: An option is wrong, the length is too short, or the tokenizer has no chat template.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    check_options(model_args | {"num_samples": num_samples, "depths": depths, "prompt": prompt, "seed": seed})
    questions = draw_questions(length, num_samples, depths, seed)
    return {"test": Dataset.from_list(build_prompts("passkey_long", questions, length, prompt, seed, model_args))}


def build_prompts(
    task: str, questions: Sequence[Question], length: int, prompt: str, seed: int, model_args: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Build the prompts of some questions.

    Args:
        task: Name of the task that asks them, for errors.
        questions: The questions.
        length: Tokens of the whole prompt.
        prompt: Name of the prompt variant.
        seed: Of the questions.
        model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        Rows of the columns that `passkey_dataset` describes.

    Raises:
        UsageError: The length is too short, or the tokenizer has no chat template.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    encoding = task_encoding(model_args)
    counter = PromptCounter(encoding.count_prompt, *_affixes(task, prompt, encoding))
    if _bare_tokens(counter, questions) > length:
        # Keys drawn for another length may take more tokens.
        more = [*questions, *draw_questions(length, 200, None, seed), Question(texts.MAX_KEY, 0.0)]
        raise UsageError(
            f"{task}: a length of {length} tokens is too short for the fixed texts of prompt {prompt!r}; "
            f"with this tokenizer it must be at least {_bare_tokens(counter, more)}"
        )
    prompts = [counter.longest(question, length) for question in questions]
    probe = max(prompts, key=counter.count)
    if counter.count_tokens(counter.text(*probe.parts)) != counter.count(probe):
        counter.edge = sys.maxsize
        prompts = [counter.longest(question, length) for question in questions]
    return [_row(counter, prompt, length) for prompt in prompts]


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with the key.

    Args:
        doc: The question.
        results: The generated text.

    Returns:
        `acc`: the first number in the text is the key, as the authors score. `exact_match`: the text, without
        surrounding space and without a final full stop, is the key.
    """
    return number_scores(results[0], doc["key"])


def draw_questions(length: int, num_samples: int, depths: int | list[float] | None, seed: int) -> list[Question]:
    """Draw keys and depths; they depend on nothing but these arguments.

    Args:
        length: Tokens.
        num_samples: How many questions.
        depths: None for uniform depths, a number of evenly spaced depths, or the depths themselves; these are cycled.
        seed: Any whole number.

    Returns:
        Questions; the first ones are the same whatever their number.
    """
    if isinstance(depths, int):
        depths = evenly_spaced(depths)
    questions = []
    for i in range(num_samples):
        rng = random.Random(f"{seed} {length} {i}")
        key, share = rng.randint(1, texts.MAX_KEY), rng.random()
        questions.append(Question(key, depths[i % len(depths)] if depths else share))
    return questions


def evenly_spaced(number: int) -> list[float]:
    """Return so many depths from 0 to 1; the middle where it is one."""
    return [i / (number - 1) for i in range(number)] if number > 1 else [0.5]


def _affixes(task: str, prompt: str, encoding: TextEncoding) -> tuple[str, str]:
    """Return what stands before and after the text in a prompt variant."""
    if prompt != CHAT:
        return texts.PROMPTS[prompt]
    tokenizer = encoding.tokenizer
    if not tokenizer.chat_template:
        raise UsageError(
            f"{task}: the tokenizer {tokenizer.name_or_path!r} has no chat template, which prompt 'chat' needs "
            f"(without one: {', '.join(texts.PROMPTS)})"
        )
    message = {"role": "user", "content": f"{texts.DESCRIPTION}\n\n{texts.QUESTION}"}
    rendered = tokenizer.apply_chat_template(
        [message], tokenize=False, add_generation_prompt=True, **encoding.chat_template_args
    )
    assert isinstance(rendered, str)  # not tokenized
    prefix, _, suffix = rendered.partition(texts.DESCRIPTION)
    return prefix, suffix


def _bare_tokens(counter: PromptCounter, questions: Iterable[Question]) -> int:
    """Return the tokens that the longest of the questions takes without any filler."""
    return max(counter.count(Prompt(question, 0)) for question in questions)


def _row(counter: PromptCounter, prompt: Prompt, length: int) -> dict[str, Any]:
    return {
        "prompt": counter.text(*prompt.parts),
        "key": prompt.question.key,
        "length": length,
        "tokens": counter.count(prompt),
        "depth": prompt.before / max(1, prompt.fillers),
    }
