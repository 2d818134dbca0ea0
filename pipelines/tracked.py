"""What a W&B run holds: metrics by length, tables of points and samples, files, and a configuration without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import wandb

from mesa_lm.pipelines.secrets import without_secrets
from mesa_lm.reporting.ranking import COSTS, Entry
from mesa_lm.reporting.results import Cell, interval, length_label
from mesa_lm.reporting.samples import answers, has_samples, samples_path

# Logs to a run and returns the run's configuration.
Log = Callable[[Any], dict[str, Any]]

SAMPLES = 100  # rows of a sample table per task and length
SAMPLE_LENGTH = 500  # characters of an answer in it
# What the summary of a run has of its entries on the leaderboard.
SUMMARY = ("effective_length", "mean", "rank", "nll", "peak_bytes", "decode_s", "prefill_s", "sample_s", "p_best")


def method_log(cells: Sequence[Cell], entries: Sequence[Entry]) -> Log:
    """Return what logs one model and method.

    Args:
        cells: All that was measured of it.
        entries: Its entries on the leaderboard.
    """

    def log(run: Any) -> dict[str, Any]:
        run.define_metric("length")
        for task in dict.fromkeys(cell.task for cell in cells):
            run.define_metric(f"{task}/*", step_metric="length")
        points = wandb.Table(columns=["task", "length", "metric", "value", "low", "high", "samples"])
        for length, group in groupby(sorted(cells, key=lambda cell: cell.length), key=lambda cell: cell.length):
            row: dict[str, Any] = {"length": length}
            for cell in group:
                low, high = interval(cell) or (None, None)
                key = f"{cell.task}/{cell.metric}"
                bounds = {"": cell.value, "_stderr": cell.stderr, "_low": low, "_high": high}
                row |= {f"{key}{name}": value for name, value in bounds.items() if value is not None}
                points.add_data(cell.task, length, cell.metric, cell.value, low, high, cell.samples)
            run.log(row)
        run.log({"points": points})
        _log_samples(run, cells)
        summary: dict[str, Any] = {}
        for entry in entries:
            row = row_of(entry)
            summary |= {f"{entry.task}/{key}": row[key] for key in SUMMARY}
        reports = {path: json.loads(path.read_text(encoding="utf-8")) for path in {cell.source for cell in cells}}
        run.summary.update(summary | _throughput(cells, reports))
        config = _config(cells[0], list(reports.values()))
        _log_files(run, cells, config)
        return config

    return log


def board_log(entries: Sequence[Entry]) -> Log:
    """Return what logs the leaderboard as one table."""

    def log(run: Any) -> dict[str, Any]:
        rows = [row_of(entry) for entry in entries]
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        run.log({"leaderboard": table})
        return {"entries": len(rows)}

    return log


def row_of(entry: Entry) -> dict[str, Any]:
    """Return an entry of the leaderboard as flat values."""
    low, high = entry.mean_interval or (None, None)
    costs = {name: entry.costs.get(name) for name in COSTS}
    return {
        "model": entry.model,
        "task": entry.task,
        "rank": entry.rank,
        "method": entry.method,
        "metric": entry.metric,
        "effective_length": entry.effective_length,
        "mean": entry.mean,
        "mean_low": low,
        "mean_high": high,
        "nll": entry.loss,
        "p_best": entry.p_best,
        **costs,
        "cost_length": entry.cost_length,
        "out_of_memory": ", ".join(map(length_label, entry.out_of_memory)),
    }


def _log_samples(run: Any, cells: Sequence[Cell]) -> None:
    """Log some samples of every task; prompts, which may be long, are in the artifact."""
    table = wandb.Table(columns=["task", "length", "metric", "score", "expected", "found"])
    for _, group in groupby(cells, key=lambda cell: cell.name):
        cell = next(group)
        for answer in answers(cell)[:SAMPLES]:
            texts = (text[:SAMPLE_LENGTH] for text in (answer.expected, answer.found))
            table.add_data(cell.task, cell.length, cell.metric, answer.score, *texts)
    if table.data:
        run.log({"samples": table})


def _log_files(run: Any, cells: Sequence[Cell], config: dict[str, Any]) -> None:
    """Attach results and samples files as an artifact."""
    name = re.sub(r"[^\w.-]+", "-", f"{Path(cells[0].model).name}-{cells[0].method}-results").strip("-")[-120:]
    artifact = wandb.Artifact(name, type="results", metadata=without_secrets(config))
    sources = sorted({cell.source for cell in cells})
    folders = sorted({path.parent for path in sources})

    def own_name(path: Path) -> str:
        # Files of two folders may have the same name.
        return path.name if len(folders) == 1 else f"{folders.index(path.parent)}/{path.name}"

    for path in sources:
        report = json.loads(path.read_text(encoding="utf-8"))
        public = without_secrets(report)
        if public == report:
            artifact.add_file(str(path), name=own_name(path))
        else:
            with artifact.new_file(own_name(path)) as file:
                json.dump(public, file, indent=2)
    for path in sorted({samples_path(cell) for cell in cells if has_samples(cell)}):
        artifact.add_file(str(path), name=own_name(path))
    run.log_artifact(artifact)


def _config(cell: Cell, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return every parameter and where the numbers come from."""
    report = max(reports, key=lambda report: report.get("date") or 0)
    keys = ("git_hash", "lm_eval_version", "transformers_version", "task_hashes", "versions", "n-shot", "date")
    return {
        "model": cell.model,
        "method": cell.method,
        **report["config"],
        **{key: report[key] for key in keys if key in report},
    }


def _throughput(cells: Sequence[Cell], reports: dict[Path, dict[str, Any]]) -> dict[str, float]:
    """Return seconds of evaluation, and tokens per second over the files that say how long they took."""
    seconds, tokens = 0.0, 0
    for path, report in reports.items():
        try:
            seconds += float(report["total_evaluation_time_seconds"])
        except (KeyError, TypeError, ValueError):
            continue
        lengths = {cell.name: (cell.samples or 0) * cell.length for cell in cells if cell.source == path}
        tokens += sum(lengths.values())
    return {"evaluation_seconds": seconds, "tokens_per_s": tokens / seconds} if seconds else {}
