"""Passkey retrieval at every one of a set of depths, scored for each depth by itself."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from datasets import Dataset
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

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


class PasskeyGrid(ConfigurableTask):
    """Passkey retrieval whose measures are as many as there are depths."""

    def __init__(self, config: dict[str, Any] | None = None, **options: Any) -> None:
        """Build the questions.

        Args:
            config: The task's YAML.
            **options: As for lm-eval's tasks.
        """
        super().__init__(config={name: v for name, v in (config or {}).items() if name != "class"}, **options)

    def aggregation(self) -> dict[str, Any]:
        """Return how answers are summed up: every measure by its mean."""
        return {**super().aggregation(), **dict.fromkeys(self._depth_metrics(), mean)}

    def higher_is_better(self) -> dict[str, bool]:
        """Return the direction of every measure: more is better."""
        return {**super().higher_is_better(), **dict.fromkeys(self._depth_metrics(), True)}

    def _depth_metrics(self) -> list[str]:
        return list(dict.fromkeys(map(depth_metric, self.dataset["test"]["asked_depth"])))


def depth_metric(depth: float) -> str:
    """Return the name of the accuracy at a depth, a share from 0 to 1."""
    return f"acc_depth_{round(100 * depth, 1):g}"


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with the key.

    Args:
        doc: The question.
        results: The generated text.

    Returns:
        `acc` as passkey_long scores it, and the same under `acc_depth_P` alone, P the depth in percent.
    """
    acc: float = passkey.score(doc, results)["acc"]
    return {"acc": acc, depth_metric(doc["asked_depth"]): acc}
