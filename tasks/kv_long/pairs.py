"""Build and score retrieval of values by keys that share their words with others, at a given length in tokens."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from datasets import Dataset

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import COUNT, WHOLE_NUMBER, OptionRules, check_task_options
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.tasks.fitting import most_that_fit
from mesa_lm.tasks.kv_long import texts
from mesa_lm.tasks.longeval_lines.texts import ADJECTIVES, NOUNS
from mesa_lm.tasks.number_answers import number_scores

RULES: OptionRules = {"num_samples": COUNT, "seed": WHOLE_NUMBER, "prompt": tuple(texts.ENDINGS)}
# Called with the user's metadata before anything is loaded; the README describes the options.
check_options = partial(check_task_options, "kv_long", RULES)

WORDS = (*ADJECTIVES.split(), *NOUNS.split())
COLUMNS = 8  # keys that share their first word, before there are more keys than eight times the words
# The keys that are asked for come from the first two rows of the grid, so that others share either of their words.
LEAST_PAIRS = 2 * COLUMNS
# Of the words of eight columns no row is made, so that every row has all of them.
MOST_PAIRS = sum(
    len(WORDS[start : start + COLUMNS]) * (len(WORDS) - len(WORDS[start : start + COLUMNS]))
    for start in range(0, len(WORDS), COLUMNS)
)


class Pair(NamedTuple):
    """A key and its value."""

    key: str
    value: int
    place: float  # pairs stand in a text in the order of their places, drawn uniformly from [0, 1)


class PairList:
    """The pairs of one prompt, of which a text has as many as fit.

    Keys are the cells of a grid of words, first word by row, second word by column. So every word of a key occurs in
    other keys, and only both together tell which one it is.
    """

    def __init__(self, rng: random.Random, asked: int) -> None:
        """Draw the keys that are asked for, and prepare to draw the rest.

        Args:
            rng: What everything is drawn from.
            asked: How many keys are asked for, at most `LEAST_PAIRS`.
        """
        self._drawn: list[Pair] = []
        self._more = _draw_pairs(rng, _cells(rng.sample(WORDS, len(WORDS))))
        self.asked = [self.pairs(LEAST_PAIRS)[i] for i in rng.sample(range(LEAST_PAIRS), asked)]

    def pairs(self, number: int) -> list[Pair]:
        """Return so many pairs, those asked for among them, as they were drawn."""
        self._drawn += islice(self._more, max(0, number - len(self._drawn)))
        return self._drawn[:number]

    def listed(self, number: int) -> list[Pair]:
        """Return so many pairs in the order of the text."""
        return sorted(self.pairs(number), key=lambda pair: pair.place)

    def text(self, number: int, question: str) -> str:
        """Return the prompt with so many pairs."""
        lines = "".join(texts.LINE.format(key=pair.key, value=pair.value) for pair in self.listed(number))
        return texts.HEAD + lines + question

    def depths(self, number: int) -> list[float]:
        """Return the share of the other pairs that stand before each one asked for, where the text has so many."""
        keys = [pair.key for pair in self.listed(number)]
        return [keys.index(pair.key) / (number - 1) for pair in self.asked]


def pairs_dataset(*, length: int, num_samples: int, prompt: str, seed: int, **model_args: Any) -> dict[str, Dataset]:
    """Build the questions of one length.

    Args:
        length: Tokens of the whole prompt as lm-eval feeds it, special tokens included. A prompt is at most so long,
            and about one line shorter at most.
        num_samples: How many questions.
        prompt: Name of the prompt variant.
        seed: Of keys, values, their order and of which key is asked for.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns prompt, key (asked for), value (of it), pairs (how many), length (as asked),
        tokens (as counted) and depth (the share of the other pairs that stand before the one asked for).

    Raises:
        UsageError: An option is wrong, or the length is too short for 16 pairs or too long for the keys there are.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    check_options(model_args | {"num_samples": num_samples, "prompt": prompt, "seed": seed})
    count_tokens = task_encoding(model_args).count_prompt
    docs = []
    for i in range(num_samples):
        pair_list = PairList(random.Random(f"kv_long {seed} {length} {i}"), asked=1)
        (asked,) = pair_list.asked
        question = (texts.QUESTION + texts.ENDINGS[prompt]).format(key=asked.key)
        number, text = longest_list("kv_long", pair_list, question, length, count_tokens)
        docs.append(
            {
                "prompt": text,
                "key": asked.key,
                "value": asked.value,
                "pairs": number,
                "length": length,
                "tokens": count_tokens(text),
                "depth": pair_list.depths(number)[0],
            }
        )
    return {"test": Dataset.from_list(docs)}


def longest_list(
    task: str, pair_list: PairList, question: str, length: int, count_tokens: Callable[[str], int]
) -> tuple[int, str]:
    """Return how many pairs fit a length, and the prompt that has them.

    Args:
        task: Name of the task, for errors.
        pair_list: The pairs.
        question: What follows them.
        length: Tokens of the whole prompt.
        count_tokens: From a text to its number of tokens.

    Raises:
        UsageError: The length is too short for 16 pairs or too long for the keys there are.
    """
    least = count_tokens(pair_list.text(LEAST_PAIRS, question))
    if least > length:
        raise UsageError(
            f"{task}: a length of {length} tokens is too short for {LEAST_PAIRS} pairs and the question; "
            f"with this tokenizer it must be at least about {least}"
        )
    number = most_that_fit(partial(pair_list.text, question=question), length, count_tokens, LEAST_PAIRS, MOST_PAIRS)
    if number == MOST_PAIRS:
        most = count_tokens(pair_list.text(MOST_PAIRS, question))
        raise UsageError(
            f"{task}: a length of {length} tokens takes more than the {MOST_PAIRS} pairs that have keys of their own; "
            f"with this tokenizer it must be at most about {most}"
        )
    return number, pair_list.text(number, question)


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with the value.

    Args:
        doc: The question.
        results: The generated text.

    Returns:
        `acc`: the first number in the text is the value. `exact_match`: the text, without surrounding space and
        without a final full stop, is the value.
    """
    return number_scores(results[0], doc["value"])


def _cells(words: Sequence[str]) -> Iterator[str]:
    """Yield the keys of a grid of words row by row, eight columns of all rows before the next eight."""
    for start in range(0, len(words), COLUMNS):
        columns = words[start : start + COLUMNS]
        for row in (*words[start + COLUMNS :], *words[:start]):
            yield from (f"{row}-{column}" for column in columns)


def _draw_pairs(rng: random.Random, keys: Iterator[str]) -> Iterator[Pair]:
    """Yield a pair for each key; no value twice."""
    values: set[int] = set()
    for key in keys:
        while (value := rng.randint(*texts.VALUES)) in values:
            pass
        values.add(value)
        yield Pair(key, value, rng.random())
