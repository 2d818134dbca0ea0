"""Passkey retrieval at every one of a set of depths, scored for each depth by itself."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from datasets import Dataset

from mesa_lm.harness.task_options import check_task_options
from mesa_lm.tasks.passkey_long import questions as passkey

# Called with the user's metadata before anything is loaded; the README describes the options.
check_options = partial(check_task_options, "passkey_grid", {**passkey.RULES, "depths": passkey.DEPTHS})


def grid_dataset(
    *, length: int, num_samples: int, depths: int | list[float], prompt: str, seed: int, **model_args: Any
) -> dict[str, Dataset]:
    """Build the questions of one length: as many at each depth.

    Args:
        length: Tokens of the whole prompt as lm-eval feeds it, special tokens included.
        num_samples: How many questions at each depth.
        depths: A number of evenly spaced depths, or the depths themselves, shares from 0 to 1.
        prompt: Name of the prompt variant of passkey_long.
        seed: Of the keys.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns of passkey_long and `asked_depth`. The depths take turns, so that the first
        questions, which `--limit` keeps, are spread over all of them.

    Raises:
        UsageError: An option is wrong, or the length is too short.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    check_options(model_args | {"num_samples": num_samples, "depths": depths, "prompt": prompt, "seed": seed})
    shares = passkey.evenly_spaced(depths) if isinstance(depths, int) else sorted(set(depths))
    questions = passkey.draw_questions(length, num_samples * len(shares), shares, seed)
    rows = passkey.build_prompts("passkey_grid", questions, length, prompt, seed, model_args)
    asked = [{"asked_depth": float(question.share)} for question in questions]
    return {"test": Dataset.from_list([row | depth for row, depth in zip(rows, asked, strict=True)])}


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with the key.

    Args:
        doc: The question.
        results: The generated text.

    Returns:
        `acc` as passkey_long scores it, and the same under `acc_depth_P` alone, P the depth in percent.
    """
    acc: float = passkey.score(doc, results)["acc"]
    return {"acc": acc, f"acc_depth_{round(100 * doc['asked_depth'], 1):g}": acc}
