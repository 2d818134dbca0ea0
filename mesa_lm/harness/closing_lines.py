"""Two lines below the results of a run of `mesa-hf`: what they show, and what to try next."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesa_lm.demo import MODEL_PATH
from mesa_lm.harness.evaluation import Evaluation
from mesa_lm.harness.task_manager import is_own_task
from mesa_lm.lengths import split_length_name


def saved_results(evaluation: Evaluation) -> Path | None:
    """Return the file that holds the results; None where there is none."""
    tracker = evaluation.arguments.get("evaluation_tracker")
    if tracker is None or not tracker.output_path or not hasattr(tracker, "date_id"):
        return None
    path = Path(tracker.output_path)
    folder = path.parent if path.suffix == ".json" else path / str(tracker.general_config_tracker.model_name_sanitized)
    return next(iter(folder.glob(f"*_{tracker.date_id}.json")), None)


def closing_lines(evaluation: Evaluation, saved: Path | None) -> tuple[str, str]:
    """Return the lines.

    Args:
        evaluation: One that has ended, of `mesa-hf`.
        saved: The file that holds the results, if there is one.
    """
    results = evaluation.results
    about = results["config"]["mesa_lm"]
    model = "the demo model" if Path(str(about["pretrained"])) == MODEL_PATH else str(about["pretrained"])
    trained = f", trained on {about['train_length']} tokens" if about["train_length"] else ""
    shown = "; ".join(_shown_tasks(results)) or ", ".join(results["configs"])
    method = about["method"]
    other = "origin" if method != "origin" else "mesa"
    said = "the same without extrapolation" if other == "origin" else "the same, extrapolated"
    given = dict(evaluation.arguments.get("model_args") or {})
    own = {name: value for name, value in given.items() if name not in (*about["parameters"], "token")} | {
        "method": other
    }
    command = f"--model_args {','.join(f'{name}={value}' for name, value in own.items())}"
    drawn = (
        f"`mesa-lm plot {_given_folder(evaluation)}` draws it"
        if saved
        else "--output_path FOLDER keeps it for `mesa-lm plot`"
    )
    return (
        f"Shown: {shown}; method {method} on {model}{trained}.",
        f"Next: {command} shows {said}; {drawn}.",
    )


def _given_folder(evaluation: Evaluation) -> Path:
    """Return the folder that the user gave, in which lm-eval makes one for each model."""
    path = Path(evaluation.arguments["evaluation_tracker"].output_path)
    return path.parent if path.suffix == ".json" else path


def _shown_tasks(results: Mapping[str, Any]) -> list[str]:
    """Return for each group of ours which lengths were run, and on how many samples."""
    lengths: dict[str, list[int]] = {}
    samples: dict[str, set[int]] = {}
    for task in results["configs"]:
        group, length = split_length_name(task)
        if is_own_task(task):
            lengths.setdefault(group, []).append(length)
            samples.setdefault(group, set()).add(results["n-samples"][task]["effective"])
    told = []
    for group, found in lengths.items():
        least, most = min(found), max(found)
        span = f"{least} tokens" if least == most else f"{len(found)} lengths from {least} to {most} tokens"
        counts = " to ".join(str(n) for n in sorted({min(samples[group]), max(samples[group])}))
        counted = f"{counts} sample{'' if counts == '1' else 's'}"
        told.append(f"{group} at {span}, {counted}{' each' if least != most else ''}")
    return told
