"""Build and score LongChat's line retrieval at a given length in tokens."""

import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from datasets import Dataset

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import COUNT, WHOLE_NUMBER, OptionRules, check_task_options
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.tasks.fitting import most_that_fit
from mesa_lm.tasks.longeval_lines import texts

RULES: OptionRules = {"num_samples": COUNT, "seed": WHOLE_NUMBER, "prompt": tuple(texts.ENDINGS)}
# Called with the user's metadata before anything is loaded; the README describes the options.
check_options = partial(check_task_options, "longeval_lines", RULES)


class Record(NamedTuple):
    """The lines of one question in their order, and which of them is asked for."""

    names: list[str]
    values: list[int]
    share: float  # of the lines before the one asked for, 0 to 1
    ending: str

    def asked(self, lines: int) -> int:
        """Return which line is asked for where the record has so many."""
        return min(int(self.share * lines), lines - 1)

    def text(self, lines: int) -> str:
        """Return the prompt with the first lines of the record."""
        pairs = zip(self.names[:lines], self.values[:lines], strict=True)
        record = "".join(texts.LINE.format(name=name, value=value) for name, value in pairs)
        return texts.HEAD + record + (texts.QUESTION + self.ending).format(name=self.names[self.asked(lines)])


def lines_dataset(*, length: int, num_samples: int, prompt: str, seed: int, **model_args: Any) -> dict[str, Dataset]:
    """Build the questions of one length.

    Args:
        length: Tokens of the whole prompt as lm-eval feeds it, special tokens included. A prompt is at most so long,
            and about one line shorter at most.
        num_samples: How many questions.
        prompt: Name of the prompt variant.
        seed: Of names, values and of which line is asked for.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns prompt, name (of the line asked for), value (in it), lines (how many), length
        (as asked), tokens (as counted) and depth (the share of the lines before the one asked for).

    Raises:
        UsageError: An option is wrong, or the length is too short for a line or too long for the names there are.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    check_options(model_args | {"num_samples": num_samples, "prompt": prompt, "seed": seed})
    count_tokens = task_encoding(model_args).count_prompt
    docs = []
    for i in range(num_samples):
        record = draw_record(random.Random(f"{seed} {length} {i}"), texts.ENDINGS[prompt])
        lines = most_lines(record, length, count_tokens)
        asked, text = record.asked(lines), record.text(lines)
        docs.append(
            {
                "prompt": text,
                "name": record.names[asked],
                "value": record.values[asked],
                "lines": lines,
                "length": length,
                "tokens": count_tokens(text),
                "depth": asked / max(1, lines - 1),
            }
        )
    return {"test": Dataset.from_list(docs)}


def draw_record(rng: random.Random, ending: str) -> Record:
    """Draw a record of as many lines as there are names, no name twice."""
    names = [f"{adjective}-{noun}" for adjective in texts.ADJECTIVES.split() for noun in texts.NOUNS.split()]
    rng.shuffle(names)
    return Record(names, [rng.randint(1, texts.MAX_VALUE) for _ in names], rng.random(), ending)


def most_lines(record: Record, length: int, count_tokens: Callable[[str], int]) -> int:
    """Return how many lines of a record fit.

    Args:
        record: The record.
        length: Tokens of the whole prompt.
        count_tokens: From a text to its number of tokens.

    Returns:
        A number of lines with which the prompt has at most `length` tokens, and with one more has more.

    Raises:
        UsageError: Not even one line fits, or all lines there are do.
    """
    least = count_tokens(record.text(1))
    if least > length:
        raise UsageError(
            f"longeval_lines: a length of {length} tokens is too short for the question and one line; "
            f"with this tokenizer it must be at least about {least}"
        )
    lines = most_that_fit(record.text, length, count_tokens, 1, len(record.names))
    if lines == len(record.names):
        raise UsageError(
            f"longeval_lines: a length of {length} tokens takes more than the {lines} lines that have names of "
            f"their own; with this tokenizer it must be at most about {count_tokens(record.text(lines))}"
        )
    return lines


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with the value of the line.

    Args:
        doc: The question.
        results: The generated text.

    Returns:
        `acc`: the last number in the text is the value, as LongChat scores. `first_number`: the first one is, which
        suits models that go on talking.
    """
    numbers = [int(number) for number in re.findall(r"[0-9]+", results[0])]
    value = doc["value"]
    return {"acc": float(numbers[-1:] == [value]), "first_number": float(numbers[:1] == [value])}
