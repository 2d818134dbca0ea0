"""The `mesa-lm bench` command; everything heavy is imported when it runs."""

import json
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from mesa_lm.cli.options import refuse_duplicates
from mesa_lm.cli.progress import shown_progress
from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.lengths import parse_length

DEFAULT_SHAPE = "tiny-6x512"
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
DEFAULT_METHODS = ["stock", "origin", "mesa"]


def bench(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or name on the hub. Default: a shape.", show_default=False),
    ] = None,
    shape: Annotated[
        str, typer.Option(help="Random weights of shapes: tiny-6x512, llama-2-7b, llama-3-8b; several as a,b.")
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
        str | None,
        typer.Option(
            "--dtypes",
            "--dtype",
            help="Dtypes of the weights, such as bfloat16. Default: float32 on a CPU, bfloat16 on a GPU.",
            show_default=False,
        ),
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
        typer.Option(help="GiB beyond which a CPU counts as out of memory. Default: what is free.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results files.")] = Path("bench"),
    in_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure time and memory of methods side by side.

    Time of the prefill and per decoded token, and peak memory with weights, KV cache and the rest told apart. Ratios
    are to `stock`, transformers alone. What runs out of memory is a result too, and weights that do not fit are named
    before they are loaded. `mesa-lm plot OUT --metric
    prefill_s` (or decode_s, peak_bytes) draws the results.
    """
    if device.partition(":")[0] not in DEVICES:
        raise UsageError(unknown_name("device", device, (*DEVICES, "cuda:1")))
    chosen = [_method(text) for text in _names(method or DEFAULT_METHODS)]
    counts = [_positive("lengths", text) for text in _listed("lengths", lengths)]
    sizes = [_positive("batches", text) for text in _listed("batches", batches)]
    shapes = _listed("shape", shape)
    if memory_limit is not None and not 0 < memory_limit < inf:
        raise UsageError(f"--memory-limit must be a number of GiB above 0, found {memory_limit}")
    if model is not None and shape != DEFAULT_SHAPE:
        raise UsageError(f"give --model or --shape, found both: {model} and {shape}")
    with shown_progress() as progress:
        progress("starting")
        import torch

        from mesa_lm.reporting.costs import GIB
        from mesa_lm.reporting.files import make_folder
        from mesa_lm.studies.bench.bench_results import print_trials, save_trials, trial_rows
        from mesa_lm.studies.bench.benchmark import DTYPES, run_benchmark
        from mesa_lm.studies.bench.shapes import SHAPES
        from mesa_lm.studies.bench.trials import Plan

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kinds = _listed("dtypes", dtypes or ("float32" if device == "cpu" and not calls else "bfloat16"))
        for what, names, known in (("dtype", kinds, DTYPES), ("shape", shapes, SHAPES)):
            for name in names:
                if name not in known:
                    raise UsageError(unknown_name(what, name, known))
        make_folder(out)
        plans = [
            Plan(
                model=model,
                shape=name,
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
            for name in shapes
        ]
        measured = []
        for plan in plans:
            trials = run_benchmark(plan, progress)
            measured.append((plan, trials, save_trials(plan, trials, out)))
    paths = [path for _, _, saved in measured for path in saved]
    if in_json:
        cells = [{"model": plan.source} | row for plan, trials, _ in measured for row in trial_rows(trials)]
        print(json.dumps({"files": [str(path) for path in paths], "cells": cells}, indent=2))
        return
    for plan, trials, _ in measured:
        print_trials(plan, trials)
    for path in paths:
        print(path)


def _names(given: list[str]) -> list[str]:
    from mesa_lm.methods.registry import available_methods
    from mesa_lm.studies.bench.timing import STOCK_NAME

    refuse_duplicates("--method", given)
    everything = [STOCK_NAME, *available_methods()]
    return list(dict.fromkeys(name for text in given for name in (everything if text == "all" else [text])))


def _method(text: str) -> tuple[str, dict[str, Any]]:
    """Read `name` or `name,parameter=value,...`, values as in lm-eval's --model_args."""
    name, comma, options = text.partition(",")
    given = [part.partition("=") for part in options.split(",")] if comma else []
    for parameter, equals, value in given:
        if not (parameter.strip() and equals and value.strip()):
            raise UsageError(f"--method must be NAME or NAME,parameter=value,..., found {text!r}")
    refuse_duplicates(f"--method {name}", (parameter.strip() for parameter, _, _ in given))
    from lm_eval.utils import simple_parse_args_string

    return name, simple_parse_args_string(options)


def _listed(option: str, text: str) -> list[str]:
    """Split at commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"--{option} needs at least one value, found {text!r}")
    refuse_duplicates(f"--{option}", parts)
    return parts


def _positive(option: str, text: str) -> int:
    """Read a number; 4k is 4096 as in the names of tasks."""
    number = parse_length(text)
    if number is None:
        raise UsageError(f"--{option} must be positive integers (or 4k for 4096 tokens), found {text!r}")
    return number
