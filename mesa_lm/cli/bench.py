"""The `mesa-lm bench` command; everything heavy is imported when it runs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.lengths import parse_length

DEFAULT_SHAPE = "tiny-6x512"
DEFAULT_METHODS = ["stock", "origin", "mesa"]


def bench(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or name on the hub. Default: a shape.", show_default=False),
    ] = None,
    shape: Annotated[
        str, typer.Option(help="Random weights of a shape: tiny-6x512, llama-2-7b or llama-3-8b.")
    ] = DEFAULT_SHAPE,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method, with parameters if wanted: mesa or rerope,window=256. May be given again; `all` stands for "
            "every method, `stock` for transformers alone. Default: stock, origin and mesa.",
            show_default=False,
        ),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Prompt lengths in tokens.")] = "2k,4k,8k,16k",
    dtypes: Annotated[
        str | None, typer.Option(help="Dtypes. Default: float32 on a CPU, bfloat16 on a GPU.", show_default=False)
    ] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1",
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds; every round runs every method once.")] = 3,
    warm_up: Annotated[int, typer.Option(min=0, help="Rounds before these.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Tokens to decode after each prefill.")] = 16,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto: cuda if there is one.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch on the CPU; 0: its own choice.")] = 0,
    memory: Annotated[bool, typer.Option(help="Measure memory too.")] = True,
    calls: Annotated[
        bool,
        typer.Option(
            "--calls",
            help="Count kernel calls on CUDA's path in the place of measuring; needs neither a GPU nor weights.",
        ),
    ] = False,
    memory_limit: Annotated[
        float | None,
        typer.Option(help="GiB beyond which a CPU counts as out of memory. Default: none.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results files.")] = Path("bench"),
    in_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure time and memory of methods side by side.

    Time of the prefill and per decoded token, and peak memory with weights, KV cache and the rest told apart. Ratios
    are to `stock`, transformers alone. A length that runs out of memory is a result too. `mesa-lm plot OUT --metric
    prefill_s` (or decode_s, peak_bytes) draws the results.
    """
    chosen = [_method(text) for text in _names(method or DEFAULT_METHODS)]
    counts = [_positive("lengths", text) for text in _listed("lengths", lengths)]
    sizes = [_positive("batches", text) for text in _listed("batches", batches)]
    import torch
    from rich.console import Console

    from mesa_lm.reporting.costs import GIB
    from mesa_lm.reporting.files import make_folder
    from mesa_lm.studies.bench.bench_results import print_trials, save_trials, trial_rows
    from mesa_lm.studies.bench.benchmark import DTYPES, run_benchmark
    from mesa_lm.studies.bench.trials import Plan

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = _listed("dtypes", dtypes or ("float32" if device == "cpu" and not calls else "bfloat16"))
    for kind in kinds:
        if kind not in DTYPES:
            raise UsageError(unknown_name("dtype", kind, DTYPES))
    make_folder(out)
    plan = Plan(
        model=model,
        shape=shape,
        methods=chosen,
        lengths=counts,
        dtypes=kinds,
        batches=sizes,
        repeats=repeats,
        warm_up=warm_up,
        steps=steps,
        device=device,
        threads=threads or torch.get_num_threads(),
        memory=memory,
        calls=calls,
        limit_bytes=None if memory_limit is None else int(memory_limit * GIB),
    )
    with Console(stderr=True).status("starting") as status:
        trials = run_benchmark(plan, status.update)
    paths = save_trials(plan, trials, out)
    if in_json:
        print(json.dumps({"files": [str(path) for path in paths], "cells": list(trial_rows(trials))}, indent=2))
        return
    print_trials(plan, trials)
    for path in paths:
        print(path)


def _names(given: list[str]) -> list[str]:
    from mesa_lm.methods.registry import available_methods
    from mesa_lm.studies.bench.timing import STOCK_NAME

    everything = [STOCK_NAME, *available_methods()]
    return list(dict.fromkeys(name for text in given for name in (everything if text == "all" else [text])))


def _method(text: str) -> tuple[str, dict[str, Any]]:
    """Read `name` or `name,parameter=value,...`, values as in lm-eval's --model_args."""
    from lm_eval.utils import simple_parse_args_string

    name, _, options = text.partition(",")
    return name, simple_parse_args_string(options)


def _listed(option: str, text: str) -> list[str]:
    """Split at commas; equal entries once."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise UsageError(f"--{option} needs at least one value, found {text!r}")
    return parts


def _positive(option: str, text: str) -> int:
    """Read a number; 4k is 4096 as in the names of tasks."""
    number = parse_length(text)
    if number is None:
        raise UsageError(f"--{option} must be positive integers (or 4k for 4096 tokens), found {text!r}")
    return number
