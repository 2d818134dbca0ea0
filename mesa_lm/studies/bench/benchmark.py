"""Carry out a benchmark: every method in turn, round after round, so that a busy machine slows all alike."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import chain, product

import torch
from transformers import PreTrainedModel

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.methods.origin import Origin
from mesa_lm.models.memory import free_bytes, release
from mesa_lm.models.support import check_supported
from mesa_lm.reporting.costs import GIB
from mesa_lm.studies.bench.floor import measure_floor
from mesa_lm.studies.bench.kernel_calls import count_run
from mesa_lm.studies.bench.memory_limit import allowed_bytes, is_out_of_memory, limited_memory, weight_bytes
from mesa_lm.studies.bench.peak_memory import cpu_memory, cuda_memory
from mesa_lm.studies.bench.shapes import load_config, load_model
from mesa_lm.studies.bench.timing import method_named, random_prompts, run_once
from mesa_lm.studies.bench.trials import Memory, Plan, Trial

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "float64")


def run_benchmark(plan: Plan, progress: Callable[[str], None]) -> list[Trial]:
    """Measure everything of a plan.

    Args:
        plan: What to measure.
        progress: Told what is being done.

    Returns:
        The trials by dtype, batch, length and method.

    Raises:
        MesaError: Something in the plan cannot be run; before any weight is loaded.
    """
    config = load_config(plan.model, plan.shape)
    named = [(method_named(name, options), options) for name, options in plan.methods]
    for method, _ in named:
        if method is not None and not isinstance(method, Origin):
            check_supported(config, method)
    methods = [(None if method is None else method.bind(config), options) for method, options in named]
    trials: list[Trial] = []
    if plan.calls:
        for dtype, batch, length, (method, options) in product(plan.dtypes, plan.batches, plan.lengths, methods):
            trial = Trial(method=method, options=options, dtype=dtype, batch=batch, length=length)
            progress(f"counting calls of {trial.name} at {length_label(length)}")
            trial.calls = count_run(config, method, dtype, batch, length)
            trials.append(trial)
        return trials
    _check_device(plan)
    torch.set_num_threads(plan.threads)
    for dtype in plan.dtypes:
        groups = [
            [
                Trial(method=method, options=options, dtype=dtype, batch=batch, length=length)
                for method, options in methods
            ]
            for batch, length in product(plan.batches, plan.lengths)
        ]
        trials += chain.from_iterable(groups)
        if not _fits(plan, dtype, progress):
            for trial in chain.from_iterable(groups):
                trial.oom = True
            continue
        if plan.memory and plan.device == "cpu":  # in other processes, before this one holds weights too
            for group in groups:
                _measure_memory(group, lambda trial: cpu_memory(plan, trial), progress)
        progress(f"loading {plan.source} in {dtype}")
        model = load_model(plan.model, plan.shape, dtype, plan.device)
        for group in groups:
            if plan.memory and plan.device != "cpu":
                _measure_memory(group, partial(cuda_memory, model), progress)
            _measure_times(plan, model, group, progress)
        del model
        release(torch.device(plan.device))
    return trials


def _fits(plan: Plan, dtype: str, progress: Callable[[str], None]) -> bool:
    """Return whether the weights fit into what is free, and say what is needed."""
    progress(f"{plan.source} in {dtype}: counting what the weights need")
    needed, free = weight_bytes(plan, dtype), allowed_bytes(plan)
    told = f"{plan.source} in {dtype}: the weights need {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
    progress(told)
    if needed > free:
        smaller = "" if dtype in ("bfloat16", "float16") else "; --dtype bfloat16 needs less"
        logger.warning("%s on %s: out of memory%s", told, plan.device, smaller)
    return needed <= free


def _check_device(plan: Plan) -> None:
    try:
        torch.empty(0, device=plan.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {plan.device!r} cannot be used: {str(error).splitlines()[0]}") from None
    if plan.memory and plan.device == "cpu" and sys.platform != "linux":
        raise UsageError(f"memory on a CPU is measured on Linux, found {sys.platform}; give --no-memory")
    if plan.memory and plan.device != "cpu" and torch.device(plan.device).type != "cuda":
        raise UsageError(f"memory is measured on cpu and cuda, found device {plan.device!r}; give --no-memory")


def _place(trial: Trial) -> str:
    return f"{length_label(trial.length)}, {trial.dtype}, batch {trial.batch}"


def _measure_memory(
    group: list[Trial], measure: Callable[[Trial], Memory | None], progress: Callable[[str], None]
) -> None:
    """Measure the memory of the methods of one dtype, batch and length, which tells what fits."""
    for trial in group:
        progress(f"memory of {trial.name} at {_place(trial)}")
        trial.memory = measure(trial)
        trial.oom = trial.memory is None


def _measure_times(plan: Plan, model: PreTrainedModel, group: list[Trial], progress: Callable[[str], None]) -> None:
    """Measure the times of the methods of one dtype, batch and length that fit, round after round."""
    if all(trial.oom for trial in group):
        return
    prompts = random_prompts(model, group[0].batch, group[0].length)
    for number in range(plan.warm_up + plan.repeats):
        for trial in _rotated(group, number):
            if trial.oom:
                continue
            progress(f"round {number + 1} of {plan.warm_up + plan.repeats}: {trial.name} at {_place(trial)}")
            try:
                with limited_memory(free_bytes(model.device)) if model.device.type == "cpu" else nullcontext():
                    taken = run_once(model, trial.method, prompts, plan.steps)
                floor = None if trial.method is None else measure_floor(model, trial.method, trial.batch, trial.length)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                trial.oom = True
                release(model.device)
                continue
            if number >= plan.warm_up:
                trial.prefill_s.append(taken.prefill_s)
                trial.decode_s.append(taken.decode_s)
                trial.floors += [] if floor is None else [floor]


def _rotated(group: list[Trial], number: int) -> Iterator[Trial]:
    """Yield the trials, in every round beginning with another one."""
    first = number % len(group)
    yield from group[first:]
    yield from group[:first]
