"""Benchmark results as lm-eval's results files and as a table."""

import json
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lm_eval.loggers.utils import get_git_commit_hash
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesa_lm.harness.sources import package_commit
from mesa_lm.lengths import length_label
from mesa_lm.methods.train_length import train_length_of
from mesa_lm.reporting.costs import GIB
from mesa_lm.reporting.files import save_file
from mesa_lm.studies.bench.shapes import load_config
from mesa_lm.studies.bench.trials import Plan, Trial


def trial_metrics(trial: Trial, trials: Sequence[Trial]) -> dict[str, float]:
    """Return the metrics of a trial: medians over rounds, with minimum and maximum for times.

    Ratios to transformers alone are medians of the ratios within one round, which a busy machine disturbs least.

    Args:
        trial: The trial.
        trials: All trials, among which that of transformers alone is looked for.
    """
    if trial.calls is not None:
        return {name: float(count) for name, count in asdict(trial.calls).items()}
    if trial.oom:
        return {"oom": 1.0}
    values = {"oom": 0.0}
    stock = next((other for other in trials if _is_baseline(other, trial)), None)
    for name, tokens in (("prefill", trial.batch * trial.length), ("decode", trial.batch)):
        seconds = np.array(getattr(trial, f"{name}_s"))
        values[f"{name}_s"] = _median(seconds)
        values[f"{name}_s_min"], values[f"{name}_s_max"] = float(seconds.min()), float(seconds.max())
        values[f"{name}_tokens_per_s"] = tokens / _median(seconds)
        if stock is not None:
            values[f"{name}_ratio"] = _median(seconds / getattr(stock, f"{name}_s"))
    if trial.floors:
        linear_s, attention_s, linear_macs, attention_macs = np.array(trial.floors).T
        values["floor_s"] = _median(linear_s + attention_s)
        values["floor_ratio"] = _median(trial.prefill_s / (linear_s + attention_s))
        values["linear_gflops"] = _median(2e-9 * linear_macs / linear_s)
        values["attention_gflops"] = _median(2e-9 * attention_macs / attention_s)
    if trial.memory is not None:
        parts = {"weight": trial.memory.weights, "kv": trial.memory.kv, "rest": trial.memory.rest}
        values |= {f"{name}_bytes": float(size) for name, size in parts.items()}
        values["peak_bytes"] = float(sum(parts.values()))
    return values


def save_trials(plan: Plan, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """Write one results file per method, dtype and batch.

    Args:
        plan: What was measured.
        trials: Its results.
        folder: Where to write, below a folder named after the model; created if missing.

    Returns:
        The files.

    Raises:
        UsageError: A file cannot be written.
    """
    paths = []
    date = time.time()
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(date))

    def place(trial: Trial) -> tuple[str, str, int]:
        return trial.label, trial.dtype, trial.batch

    for (label, dtype, batch), group in groupby(sorted(trials, key=place), key=place):
        path = folder / _file_name(plan.source) / f"results_{_file_name(f'{label}_{dtype}_b{batch}')}_{stamp}.json"
        save_file(path, json.dumps(_report(plan, list(group), trials, date), indent=2) + "\n")
        paths.append(path)
    return paths


def trial_rows(trials: Sequence[Trial]) -> Iterator[dict[str, Any]]:
    """Yield what identifies each trial, with its metrics."""
    for trial in trials:
        place = {"method": trial.label, "dtype": trial.dtype, "batch": trial.batch, "length": trial.length}
        yield {**place, **trial_metrics(trial, trials)}


def print_trials(plan: Plan, trials: Sequence[Trial]) -> None:
    """Print the trials for a reader."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    if plan.calls:
        console.print(_calls_table(plan, trials))
        return
    console.print(
        f"{plan.source} on {plan.device}, {plan.threads} threads; median (min to max) of {plan.repeats} rounds"
    )
    memory = "peak GiB = weights + kv + rest"
    table = Table("length", "method", "prefill s", "x stock", "x floor", "decode ms", "x stock", memory)
    many = len({(trial.dtype, trial.batch) for trial in trials}) > 1
    for row in trial_rows(trials):
        label = f"{length_label(row['length'])}, {row['dtype']}, batch {row['batch']}" if many else None
        table.add_row(label or length_label(row["length"]), Text(row["method"]), *_texts(row))
    console.print(table)
    for row in trial_rows(trials):
        if "floor_s" in row:
            console.print(
                f"floor of {row['method']} at {length_label(row['length'])} tokens, {row['dtype']}, batch "
                f"{row['batch']}: {row['floor_s']:.3f} s at {row['linear_gflops']:.0f} GFLOP/s in matrix products and "
                f"{row['attention_gflops']:.0f} in attention; prefill {row['floor_ratio']:.2f}x"
            )


def _calls_table(plan: Plan, trials: Sequence[Trial]) -> Table:
    """Return the kernel calls of each trial."""
    title = f"{plan.source}: kernel calls of a layer + outside layers, waits of the host, copies to the device"
    table = Table("length", "method", "prefill", "waits", "copies", "decoded token", "waits", "copies", title=title)
    for row in trial_rows(trials):
        label = f"{length_label(row['length'])}, {row['dtype']}, batch {row['batch']}"
        counts = [
            text
            for kind in ("prefill", "decode")
            for text in (
                f"{row[f'{kind}_layer_calls']:g} + {row[f'{kind}_fixed_calls']:g}",
                f"{row[f'{kind}_wait_calls']:g}",
                f"{row[f'{kind}_copy_calls']:g}",
            )
        ]
        table.add_row(label, Text(row["method"]), *counts)
    return table


def _texts(row: dict[str, Any]) -> list[str]:
    if row["oom"]:
        return ["out of memory", "", "", "", "", ""]

    def times(name: str, scale: float) -> str:
        low, high = row[f"{name}_min"] * scale, row[f"{name}_max"] * scale
        return f"{row[name] * scale:.3g} ({low:.3g} to {high:.3g})"

    def ratio(name: str) -> str:
        return f"{row[name]:.2f}" if name in row else ""

    memory = ""
    if "peak_bytes" in row:
        peak, *parts = (row[f"{name}_bytes"] / GIB for name in ("peak", "weight", "kv", "rest"))
        memory = f"{peak:.2f} = " + " + ".join(f"{part:.2f}" for part in parts)
    prefill, decode = times("prefill_s", 1), times("decode_s", 1000)
    return [prefill, ratio("prefill_ratio"), ratio("floor_ratio"), decode, ratio("decode_ratio"), memory]


def _report(plan: Plan, group: Sequence[Trial], trials: Sequence[Trial], date: float) -> dict[str, Any]:
    """Return what lm-eval would save of an evaluation with one task per length."""
    config = load_config(plan.model, plan.shape)
    first = group[0]
    task = f"bench_{first.dtype}_b{first.batch}"
    names = {f"{task}_{length_label(trial.length)}": trial for trial in group}
    measured = {name: trial_metrics(trial, trials) for name, trial in names.items()}
    parameters = {} if first.method is None else asdict(first.method)
    return {
        "results": {
            name: {"alias": name, **{f"{key},none": value for key, value in values.items()}}
            for name, values in measured.items()
        },
        "group_subtasks": {task: list(names)},
        "configs": {name: {"task": name, "metadata": {"length": trial.length}} for name, trial in names.items()},
        "higher_is_better": {
            name: {key: "per_s" in key or "gflops" in key for key in values} for name, values in measured.items()
        },
        "n-samples": {
            name: {"original": plan.repeats, "effective": len(trial.prefill_s)} for name, trial in names.items()
        },
        "config": {
            "model": "mesa-lm bench",
            "model_args": {"pretrained": plan.source, "method": first.name, **first.options},
            "batch_size": first.batch,
            "device": plan.device,
            "mesa_lm": {
                "method": first.name,
                "parameters": parameters,
                "train_length": parameters.get("train_length") or train_length_of(config),
                "pretrained": plan.source,
                "version": version("mesa-lm"),
                **package_commit()._asdict(),
                "device": plan.device,
                "dtype": f"torch.{first.dtype}",
            },
        },
        "bench": {
            "threads": plan.threads,
            "repeats": plan.repeats,
            "steps": plan.steps,
            "device": _device_name(plan.device),
            "command": sys.argv,
            "cells": [{"length": c.length, "prefill_s": c.prefill_s, "decode_s": c.decode_s} for c in group],
        },
        "git_hash": get_git_commit_hash(),
        "date": date,
        "versions": dict.fromkeys(names, version("mesa-lm")),
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _is_baseline(other: Trial, trial: Trial) -> bool:
    same = (other.dtype, other.batch, other.length) == (trial.dtype, trial.batch, trial.length)
    return same and other.method is None and not other.oom


def _file_name(text: str) -> str:
    # A leading dot, as of ./my-model, would hide it.
    return re.sub(r"[^\w.+-]+", "_", text).strip("._") or "model"
