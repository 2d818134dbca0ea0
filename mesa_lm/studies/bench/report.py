"""Benchmark results as lm-eval's results files and as a table."""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from lm_eval.loggers.utils import get_git_commit_hash

from mesa_lm import __version__
from mesa_lm.methods.train_length import train_length_of
from mesa_lm.reporting.results import length_label
from mesa_lm.studies.bench.memory import GIB
from mesa_lm.studies.bench.models import load_config
from mesa_lm.studies.bench.run import Cell, Plan


def metrics(cell: Cell, cells: Sequence[Cell]) -> dict[str, float]:
    """Return the metrics of a cell: medians over rounds, with minimum and maximum for times.

    Ratios to transformers alone are medians of the ratios within one round, which a busy machine disturbs least.

    Args:
        cell: The cell.
        cells: All cells, among which that of transformers alone is looked for.
    """
    if cell.oom:
        return {"oom": 1.0}
    values = {"oom": 0.0}
    stock = next((other for other in cells if _is_baseline(other, cell)), None)
    for name, tokens in (("prefill", cell.batch * cell.length), ("decode", cell.batch)):
        seconds: list[float] = getattr(cell, f"{name}_s")
        values[f"{name}_s"] = median(seconds)
        values[f"{name}_s_min"], values[f"{name}_s_max"] = min(seconds), max(seconds)
        values[f"{name}_tokens_per_s"] = tokens / median(seconds)
        if stock is not None:
            values[f"{name}_ratio"] = median(
                own / other for own, other in zip(seconds, getattr(stock, f"{name}_s"), strict=True)
            )
    if cell.floors:
        values["floor_s"] = median(floor.seconds for floor in cell.floors)
        values["floor_ratio"] = median(
            own / floor.seconds for own, floor in zip(cell.prefill_s, cell.floors, strict=True)
        )
        for part in ("linear", "attention"):
            values[f"{part}_gflops"] = median(
                2e-9 * getattr(floor, f"{part}_macs") / getattr(floor, f"{part}_s") for floor in cell.floors
            )
    if cell.memory is not None:
        parts = {"weight": cell.memory.weights, "kv": cell.memory.kv, "rest": cell.memory.rest}
        values |= {f"{name}_bytes": float(size) for name, size in parts.items()}
        values["peak_bytes"] = float(sum(parts.values()))
    return values


def write(plan: Plan, cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write one results file per method, dtype and batch.

    Args:
        plan: What was measured.
        cells: Its results.
        folder: Where to write, below a folder named after the model; created if missing.

    Returns:
        The files.
    """
    paths = []
    target = folder / _file_name(plan.source)
    target.mkdir(parents=True, exist_ok=True)
    date = time.time()
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(date))
    for group in _by_method(cells):
        name = _file_name(f"{_label(group[0])}_{group[0].dtype}_b{group[0].batch}")
        path = target / f"results_{name}_{stamp}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(_results(plan, group, cells, date), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
        paths.append(path)
    return paths


def rows(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Yield what identifies each cell, with its metrics."""
    for cell in cells:
        place = {"method": _label(cell), "dtype": cell.dtype, "batch": cell.batch, "length": cell.length}
        yield {**place, **metrics(cell, cells)}


def print_table(plan: Plan, cells: Sequence[Cell]) -> None:
    """Print the cells for a reader."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(
        f"{plan.source} on {plan.device}, {plan.threads} threads; median (min to max) of {plan.repeats} rounds"
    )
    memory = "peak GiB = weights + kv + rest"
    table = Table("length", "method", "prefill s", "x stock", "x floor", "decode ms", "x stock", memory)
    many = len({(cell.dtype, cell.batch) for cell in cells}) > 1
    for row in rows(cells):
        label = f"{length_label(row['length'])}, {row['dtype']}, batch {row['batch']}" if many else None
        table.add_row(label or length_label(row["length"]), Text(row["method"]), *_texts(row))
    console.print(table)
    for row in rows(cells):
        if "floor_s" in row:
            console.print(
                f"floor of {row['method']} at {length_label(row['length'])} tokens, {row['dtype']}, batch "
                f"{row['batch']}: {row['floor_s']:.3f} s at {row['linear_gflops']:.0f} GFLOP/s in matrix products and "
                f"{row['attention_gflops']:.0f} in attention; prefill {row['floor_ratio']:.2f}x"
            )


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


def _results(plan: Plan, group: Sequence[Cell], cells: Sequence[Cell], date: float) -> dict[str, Any]:
    """Return what lm-eval would save of an evaluation with one task per length."""
    config = load_config(plan.model, plan.shape)
    first = group[0]
    task = f"bench_{first.dtype}_b{first.batch}"
    names = {f"{task}_{length_label(cell.length)}": cell for cell in group}
    measured = {name: metrics(cell, cells) for name, cell in names.items()}
    parameters = {} if first.method is None else asdict(first.method)
    return {
        "results": {
            name: {"alias": name, **{f"{key},none": value for key, value in values.items()}}
            for name, values in measured.items()
        },
        "group_subtasks": {task: list(names)},
        "configs": {name: {"task": name, "metadata": {"length": cell.length}} for name, cell in names.items()},
        "higher_is_better": {
            name: {key: "per_s" in key or "gflops" in key for key in values} for name, values in measured.items()
        },
        "n-samples": {
            name: {"original": plan.repeats, "effective": len(cell.prefill_s)} for name, cell in names.items()
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
                "version": __version__,
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
        "versions": dict.fromkeys(names, __version__),
        **_library_versions(),
    }


def _library_versions() -> dict[str, str]:
    import torch
    import transformers

    return {"torch_version": torch.__version__, "transformers_version": transformers.__version__}


def _device_name(device: str) -> str:
    import platform

    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"


def _is_baseline(other: Cell, cell: Cell) -> bool:
    same = (other.dtype, other.batch, other.length) == (cell.dtype, cell.batch, cell.length)
    return same and other.method is None and not other.oom


def _label(cell: Cell) -> str:
    given = ", ".join(f"{key}={value}" for key, value in sorted(cell.options.items()))
    return f"{cell.name} ({given})" if given else cell.name


def _by_method(cells: Sequence[Cell]) -> list[list[Cell]]:
    def key(cell: Cell) -> tuple[str, str, int]:
        return _label(cell), cell.dtype, cell.batch

    return [list(group) for _, group in groupby(sorted(cells, key=key), key=key)]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
