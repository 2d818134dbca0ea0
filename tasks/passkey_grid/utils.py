"""Passkey retrieval at every one of a set of depths, scored for each depth by itself."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import check_option_names, is_count, wrong_option
from mesa_lm.tasks.passkey_long import utils as passkey

OPTIONS = ("lengths", "num_samples", "depths", "prompt", "seed")


def check_options(metadata: Mapping[str, Any]) -> None:
    """Check the options of passkey_grid before anything is loaded; the README describes them.

    Args:
        metadata: The user's metadata, the arguments of the model among it.

    Raises:
        UsageError: An option is misspelt, of the wrong type or out of range.
    """
    check_option_names("passkey_grid", metadata, OPTIONS)
    depths = metadata.get("depths", 11)
    shares = isinstance(depths, list) and depths and all(type(v) in (int, float) and 0 <= v <= 1 for v in depths)
    if not is_count(depths) and not shares:
        allowed = "a whole number of at least 1, or a list of shares from 0 to 1"
        raise wrong_option("passkey_grid", "depths", allowed, metadata)
    try:
        passkey.check_options(metadata)
    except UsageError as error:
        raise UsageError(str(error).replace("passkey_long", "passkey_grid")) from error


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
    options = {"num_samples": num_samples, "depths": depths, "prompt": prompt, "seed": seed}
    check_options(model_args | options)
    shares = evenly_spaced(depths) if isinstance(depths, int) else sorted(set(depths))
    options |= {"num_samples": num_samples * len(shares), "depths": shares}
    try:
        docs = passkey.passkey_dataset(length=length, **options, **model_args)["test"]
    except UsageError as error:
        raise UsageError(str(error).replace("passkey_long", "passkey_grid")) from error
    return {"test": docs.add_column("asked_depth", [float(shares[i % len(shares)]) for i in range(len(docs))])}


def evenly_spaced(number: int) -> list[float]:
    """Return so many depths from 0 to 1; the middle where it is one."""
    return [i / (number - 1) for i in range(number)] if number > 1 else [0.5]


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
