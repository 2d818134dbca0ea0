"""What a W&B run holds: metrics by length, tables of points and samples, files, and a configuration without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.secrets import without_secrets
from mesa_lm.reporting.costs import RANKED_COSTS
from mesa_lm.reporting.ranking import Entry
from mesa_lm.reporting.results import Results, measurements
from mesa_lm.reporting.samples import answers, has_samples, samples_path

SAMPLES = 100  # rows of a sample table per task and length
SAMPLE_LENGTH = 500  # characters of an answer in it
# What the summary of a run has of its entries on the leaderboard.
SUMMARY = ("effective_length", "mean", "rank", "nll", *RANKED_COSTS, "p_best")


def log_method(run: Any, results: Results, entries: Sequence[Entry]) -> dict[str, Any]:
    """Log one model and method.

    Args:
        run: The W&B run.
        results: All that was measured of it.
        entries: Its entries on the leaderboard.

    Returns:
        The run's configuration.
    """
    points = wandb.Table(columns=["task", "length", "metric", "value", "low", "high", "samples"])
    log_lengths(run, results.table)
    for row in measurements(results.table.sort_values("length", kind="stable")):
        points.add_data(row.task, row.length, row.metric, row.value, *(row.interval or (None, None)), row.samples)
    run.log({"points": points})
    _log_samples(run, results)
    ranked = {f"{entry.task}/{key}": value for entry in entries for key, value in summary(entry).items()}
    run.summary.update(ranked | _throughput(results))
    config = _config(results)
    _log_files(run, results, config)
    return config


def summary(entry: Entry) -> dict[str, Any]:
    """Return what the summary of a run has of an entry."""
    row = entry.row()
    return {key: row[key] for key in SUMMARY}


def log_lengths(run: Any, table: pd.DataFrame) -> None:
    """Log every metric against length.

    Args:
        run: The W&B run.
        table: Rows of one model and method, as in `Results`.
    """
    run.define_metric("length")
    for task in table.task.unique():
        run.define_metric(f"{task}/*", step_metric="length")
    for length, rows in table.groupby("length"):
        logged: dict[str, Any] = {"length": length}
        for row in measurements(rows):
            low, high = row.interval or (None, None)
            bounds = {"": row.value, "_stderr": row.stderr, "_low": low, "_high": high}
            key = f"{row.task}/{row.metric}"
            logged |= {f"{key}{name}": value for name, value in bounds.items() if value is not None}
        run.log(logged)


def log_leaderboard(run: Any, entries: Sequence[Entry]) -> dict[str, Any]:
    """Log the leaderboard as one table, and return the run's configuration."""
    rows = [entry.row() for entry in entries]
    table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
    run.log({"leaderboard": table})
    return {"entries": len(rows)}


def _log_samples(run: Any, results: Results) -> None:
    """Log some samples of every task; prompts, which may be long, are in the artifact."""
    table = wandb.Table(columns=["task", "length", "metric", "score", "expected", "found"])
    for row in measurements(results.table.drop_duplicates("name")):
        scored = (answer for answer in answers(row) if isinstance(answer.score, int | float))
        with suppress(UsageError):  # a damaged file; `track` names it
            for answer in islice(scored, SAMPLES):
                texts = (text[:SAMPLE_LENGTH] for text in (answer.expected, answer.found))
                table.add_data(row.task, row.length, row.metric, float(answer.score), *texts)
    if table.data:
        run.log({"samples": table})


def _log_files(run: Any, results: Results, config: dict[str, Any]) -> None:
    """Attach results and samples files as an artifact."""
    model, method = results.table.iloc[0][["model", "method"]]
    name = re.sub(r"[^\w.-]+", "-", f"{Path(model).name}-{method}-results").strip("-")[-120:]
    artifact = wandb.Artifact(name, type="results", metadata=without_secrets(config))
    folders = sorted({path.parent for path in results.files})

    def own_name(path: Path) -> str:
        # Files of two folders may have the same name.
        return path.name if len(folders) == 1 else f"{folders.index(path.parent)}/{path.name}"

    for path, file in sorted(results.files.items()):
        public = without_secrets(file.content)
        if public == file.content:
            artifact.add_file(str(path), name=own_name(path))
        else:
            with artifact.new_file(own_name(path)) as copy:
                json.dump(public, copy, indent=2)
    for path in sorted({samples_path(row) for row in measurements(results.table) if has_samples(row)}):
        artifact.add_file(str(path), name=own_name(path))
    run.log_artifact(artifact)


def _config(results: Results) -> dict[str, Any]:
    """Return every parameter and where the numbers come from."""
    newest = max(results.files.values(), key=lambda file: file.date)
    keys = ("git_hash", "lm_eval_version", "transformers_version", "task_hashes", "versions", "n-shot", "date")
    return {
        "model": newest.model,
        "method": newest.method,
        **newest.config,
        **{key: newest.content[key] for key in keys if key in newest.content},
    }


def _throughput(results: Results) -> dict[str, float]:
    """Return seconds of evaluation, and tokens per second over the files that say how long they took."""
    seconds, tokens = 0.0, 0
    for path, file in results.files.items():
        try:
            seconds += float(file.content["total_evaluation_time_seconds"])
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        rows = results.table[results.table.source == path]
        tasks = rows.groupby("name")[["length", "samples"]].max().fillna(0)
        tokens += int((tasks.length * tasks.samples).sum())
    return {"evaluation_seconds": seconds, "tokens_per_s": tokens / seconds} if seconds else {}
