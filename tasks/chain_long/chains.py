"""Build and score variable tracking over several hops at a given length in tokens."""

import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from datasets import Dataset

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import COUNT, WHOLE_NUMBER, OptionRule, OptionRules, check_task_options, is_count
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.tasks.fitting import most_that_fit
from mesa_lm.tasks.longeval_lines.texts import ADJECTIVES, NOUNS
from mesa_lm.tasks.number_answers import number_scores
from mesa_lm.tasks.passkey_long.texts import FILLER

# The filler says that something is green.
NAMES = tuple(word for word in (*ADJECTIVES.split(), *NOUNS.split()) if word not in FILLER)
MOST = 12  # hops, and chains: together no more names than there are words
SMALL = OptionRule(lambda value: is_count(value) and value <= MOST, f"a whole number from 1 to {MOST}")

HEAD = "Some names stand for numbers. Remember which, because I will ask you for one.\n\n"
FIRST = "Let {name} be {value}."
LINK = "Let {name} be the same as {before}."
QUESTION = "\n\nWhich number is {name}? Answer with the number only."
# What follows the question: the start of the answer for models that only continue a text, or nothing.
ENDINGS = {"answer": " The number {name} is", "plain": ""}
VALUES = range(10_000, 100_000)

RULES: OptionRules = {
    "num_samples": COUNT,
    "seed": WHOLE_NUMBER,
    "hops": SMALL,
    "chains": SMALL,
    "prompt": tuple(ENDINGS),
}
# Called with the user's metadata before anything is loaded; the README describes the options.
check_options = partial(check_task_options, "chain_long", RULES)


class Statement(NamedTuple):
    """A sentence that gives a name its number."""

    place: float  # share of the filler before it
    text: str


class Chains(NamedTuple):
    """What is hidden, where, and what is asked for: the same for every model and method.

    Attributes:
        statements: Of all chains, in the order of the text.
        names: Of the chain that is asked for, from the one that has the number to the one asked for.
        value: Its number.
    """

    statements: Sequence[Statement]
    names: Sequence[str]
    value: int

    def text(self, fillers: int, question: str) -> str:
        """Return the prompt with so many sentences of filler."""
        pieces: list[str] = []
        used = 0  # of the fillers
        for statement in self.statements:
            before = int(statement.place * (fillers + 1))
            pieces += [*[FILLER] * (before - used), statement.text]
            used = before
        return HEAD + " ".join([*pieces, *[FILLER] * (fillers - used)]) + question


def draw_chains(rng: random.Random, hops: int, chains: int) -> Chains:
    """Draw chains of equal length; within each the statements stand in the order of its links.

    Args:
        rng: What they are drawn from.
        hops: Links of each chain.
        chains: How many there are; the first one drawn is asked for.
    """
    names = rng.sample(NAMES, chains * (hops + 1))
    values = rng.sample(VALUES, chains)
    statements: list[Statement] = []
    for i, value in enumerate(values):
        own = names[i * (hops + 1) : (i + 1) * (hops + 1)]
        texts = [FIRST.format(name=own[0], value=value)]
        texts += [LINK.format(name=name, before=before) for before, name in pairwise(own)]
        places = sorted(rng.random() for _ in texts)
        statements += map(Statement, places, texts)
    return Chains(sorted(statements, key=itemgetter(0)), names[: hops + 1], values[0])


def chains_dataset(
    *, length: int, num_samples: int, hops: int, chains: int, prompt: str, seed: int, **model_args: Any
) -> dict[str, Dataset]:
    """Build the questions of one length.

    Args:
        length: Tokens of the whole prompt as lm-eval feeds it, special tokens included. A prompt is at most so long,
            and less than one filler sentence shorter.
        num_samples: How many questions.
        hops: Links from the name that is asked for to the one that has the number.
        chains: Chains of so many links in the text.
        prompt: Name of the prompt variant.
        seed: Of names, numbers and places.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns prompt, names (of the chain that is asked for, in the order of its links),
        value (its number), length (as asked) and tokens (as counted).

    Raises:
        UsageError: An option is wrong, or the length is too short.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    given = {"num_samples": num_samples, "hops": hops, "chains": chains, "prompt": prompt, "seed": seed}
    check_options(model_args | given)
    count_tokens = task_encoding(model_args).count_prompt
    docs = []
    for i in range(num_samples):
        drawn = draw_chains(random.Random(f"chain_long {seed} {length} {i}"), hops, chains)
        text = partial(drawn.text, question=(QUESTION + ENDINGS[prompt]).format(name=drawn.names[-1]))
        least = count_tokens(text(0))
        if least > length:
            raise UsageError(
                f"chain_long: a length of {length} tokens is too short for {chains} chains of {hops} hops; "
                f"with this tokenizer it must be at least about {least}; or lower chains or hops"
            )
        longest = text(most_that_fit(text, length, count_tokens, least=0, most=length))
        docs.append(
            {
                "prompt": longest,
                "names": list(drawn.names),
                "value": drawn.value,
                "length": length,
                "tokens": count_tokens(longest),
            }
        )
    return {"test": Dataset.from_list(docs)}


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with the number.

    Args:
        doc: The question.
        results: The generated text.

    Returns:
        `acc`: the first number in the text is the right one. `exact_match`: the text, without surrounding space and
        without a final full stop, is it.
    """
    return number_scores(results[0], doc["value"])
