"""Ask for the values of several keys of one list, in order, at a given length in tokens."""

import random
from collections.abc import Mapping
from functools import partial
from typing import Any

from datasets import Dataset

from mesa_lm.harness.task_options import OptionRule, OptionRules, check_task_options, is_count
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.tasks.kv_long.pairs import RULES as KV_RULES
from mesa_lm.tasks.kv_long.pairs import PairList, longest_list
from mesa_lm.tasks.number_answers import numbers_in

MOST_KEYS = 8  # whose values the tokens that are generated have room for
RULES: OptionRules = {
    **KV_RULES,
    "keys": OptionRule(
        lambda value: is_count(value) and 2 <= value <= MOST_KEYS, f"a whole number from 2 to {MOST_KEYS}"
    ),
}
# Called with the user's metadata before anything is loaded; the README describes the options.
check_options = partial(check_task_options, "multikey_long", RULES)

QUESTION = "\nWhat are the values of {keys}? Answer with the numbers only, in this order, separated by commas."
ENDINGS = {"answer": " The values of {keys}, in this order, are", "plain": ""}


def keys_dataset(
    *, length: int, num_samples: int, keys: int, prompt: str, seed: int, **model_args: Any
) -> dict[str, Dataset]:
    """Build the questions of one length.

    Args:
        length: Tokens of the whole prompt as lm-eval feeds it, special tokens included. A prompt is at most so long,
            and about one line shorter at most.
        num_samples: How many questions.
        keys: How many keys each asks for.
        prompt: Name of the prompt variant.
        seed: Of keys, values, their order and of which keys are asked for.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns prompt, keys (in the order of the question), values (of them), pairs (how
        many), length (as asked), tokens (as counted) and depths (the shares of the other pairs that stand before each).

    Raises:
        UsageError: An option is wrong, or the length is too short for 16 pairs or too long for the keys there are.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    check_options(model_args | {"num_samples": num_samples, "keys": keys, "prompt": prompt, "seed": seed})
    count_tokens = task_encoding(model_args).count_prompt
    docs = []
    for i in range(num_samples):
        pair_list = PairList(random.Random(f"multikey_long {seed} {length} {i}"), asked=keys)
        names = [pair.key for pair in pair_list.asked]
        question = (QUESTION + ENDINGS[prompt]).format(keys=f"{', '.join(names[:-1])} and {names[-1]}")
        number, text = longest_list("multikey_long", pair_list, question, length, count_tokens)
        docs.append(
            {
                "prompt": text,
                "keys": names,
                "values": [pair.value for pair in pair_list.asked],
                "pairs": number,
                "length": length,
                "tokens": count_tokens(text),
                "depths": pair_list.depths(number),
            }
        )
    return {"test": Dataset.from_list(docs)}


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with the values.

    Only the first numbers of the text count, as many as there are keys; a number that is left out moves the others.

    Args:
        doc: The question.
        results: The generated text.

    Returns:
        `acc`: these numbers are the values in the order of the question. `key_acc`: the share of keys whose value
        stands at its place. `any_order`: the share of the values that are among these numbers, each counted once.
    """
    values = [str(value) for value in doc["values"]]
    found = numbers_in(results[0])[: len(values)]
    right = sum(number == value for number, value in zip(found, values, strict=False))
    return {
        "acc": float(found == values),
        "key_acc": right / len(values),
        "any_order": len({*found} & {*values}) / len(values),
    }
