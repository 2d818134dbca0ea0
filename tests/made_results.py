"""Results made by hand: rows of the table, and the files that lm-eval would write."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from mesa_lm.lengths import length_name
from mesa_lm.reporting.lm_eval_files import Measurement
from mesa_lm.reporting.ranking import Entry, rank
from mesa_lm.reporting.results import read, table_of


def measurement(**changes: Any) -> Measurement:
    """An accuracy of a half, or what is said of it."""
    values: dict[str, Any] = {
        "model": "org/base",
        "method": "mesa",
        "task": "passkey_long",
        "name": "passkey_long_1k",
        "length": 1024,
        "metric": "acc",
        "value": 0.5,
        "stderr": None,
        "samples": 20,
        "higher_is_better": True,
        "train_length": 512,
        "source": Path("results_1.json"),
    }
    return Measurement(**(values | changes))


def line(values: dict[int, float], **changes: Any) -> pd.DataFrame:
    """The rows of one line of a figure."""
    return table_of(measurement(length=length, value=value, **changes) for length, value in values.items())


def report(
    values: dict[int, float],
    *,
    task: str = "keys",
    metric: str = "acc",
    stderr: float | None = None,
    samples: int = 10,
    date: float = 1.0,
    **config: Any,
) -> dict[str, Any]:
    """What lm-eval writes for a metric of each length."""
    names = {length_name(task, length): length for length in values}
    scores = {name: {"alias": name, "sample_len": samples, f"{metric},none": values[n]} for name, n in names.items()}
    for score in scores.values() if stderr is not None else ():
        score[f"{metric}_stderr,none"] = stderr
    return {
        "results": scores | {task: {"alias": task, f"{metric},none": 0.5, f"{metric}_stderr,none": "N/A"}},
        "configs": {name: {"task": name, "dataset_kwargs": {"length": length}} for name, length in names.items()},
        "group_subtasks": {task: list(names)},
        "higher_is_better": {name: {metric: metric != "nll"} for name in names},
        "n-samples": {name: {"original": 100, "effective": samples} for name in names},
        "config": {"model": "mesa-hf", "model_args": {}} | config,
        "date": date,
    }


def save(path: Path, content: object) -> Path:
    """Save a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def save_results(
    folder: Path,
    method: str,
    scores: dict[int, dict[str, float]],
    *,
    metric: str = "acc",
    task: str = "keys",
    model: str = "org/base",
    logged: bool = True,
    answer: str = "none",
) -> Path:
    """Save what lm-eval would for a method: per length the score of each sample by its document."""
    content = report(
        {length: sum(own.values()) / len(own) for length, own in scores.items()},
        task=task,
        metric=metric,
        stderr=0.1,
        model_args={"pretrained": model, "method": method},
        mesa_lm={"method": method, "parameters": {}, "train_length": 512},
    )
    for length, own in scores.items():
        name = length_name(task, length)
        content["n-samples"][name]["effective"] = len(own)
        lines = [
            {"doc_id": i, "doc_hash": key, "target_hash": "t", "filter": "none", metric: score}
            | {"target": "right", "filtered_resps": [answer]}
            for i, (key, score) in enumerate(own.items())
        ]
        if logged:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"samples_{name}_{task}_{method}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return save(folder / f"results_{task}_{method}.json", content)


def ranked(folder: Path, methods: dict[str, dict[int, int]], **options: Any) -> list[Entry]:
    """The leaderboard of methods that were right so many times of 20 at each length."""
    for method, right in methods.items():
        scores = {length: {f"doc{i}": float(i < n) for i in range(20)} for length, n in right.items()}
        save_results(folder, method, scores, **options)
    return rank(read([folder]))
