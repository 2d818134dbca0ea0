"""Peak memory of a prefill and a few decoding steps, with weights, cache and the rest told apart.

On CPU every measurement has a process of its own, because memory that one method leaves behind serves the next:
`python -m mesa_lm.studies.bench.peak_memory` reads a pickled plan and trial and prints the result as JSON.
"""

import ctypes
import gc
import json
import pickle
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.errors import ModelError
from mesa_lm.models.memory import free_bytes, release, reset_peak, status_bytes
from mesa_lm.studies.bench.memory_limit import is_out_of_memory, limited_memory
from mesa_lm.studies.bench.shapes import load_model
from mesa_lm.studies.bench.timing import random_prompts, run_once
from mesa_lm.studies.bench.trials import Memory, Plan, Trial

# Enough to start every thread and library, so that these are not counted.
WARM_UP_TOKENS = 64
STEPS = 2


def cpu_memory(plan: Plan, trial: Trial) -> Memory | None:
    """Measure in a process of its own.

    Returns:
        The memory at the peak; None if it is not enough, be it that an allocation fails or that the system kills the
        process.

    Raises:
        ModelError: The process failed otherwise.
    """
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=pickle.dumps((plan, trial)), capture_output=True, check=False)
    if done.returncode == -9:  # the kernel's answer to a machine without memory
        return None
    if done.returncode != 0:
        reason = (done.stderr.decode().strip() or "no message").split("\n")[-1]
        raise ModelError(f"measuring the memory of {trial.name} at {trial.length} tokens failed: {reason}")
    answer = json.loads(done.stdout.decode().strip().split("\n")[-1])
    return None if answer is None else Memory(**answer)


def cuda_memory(model: PreTrainedModel, trial: Trial) -> Memory | None:
    """Measure on the model's CUDA device; None if its memory is not enough."""
    prompts = random_prompts(model, trial.batch, trial.length)
    try:
        run_once(model, trial.method, prompts[:, :WARM_UP_TOKENS], STEPS)
        release(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        cache = run_once(model, trial.method, prompts, STEPS).cache
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        release(model.device)
    return _told_apart(model, cache, torch.cuda.max_memory_allocated(model.device) - before)


def kv_bytes(cache: Any) -> int:
    """Return the bytes of the keys and values that a cache holds, without room for more."""
    filled = woven_layer(cache)
    if filled is not None:
        tokens = sum(row.length - row.dropped for row in filled.woven.rows)
        held = [*filled.woven.keys.values(), *filled.woven.values.values()]
        return sum(tokens * states.shape[1] * states.shape[3] * states.element_size() for states in held)
    held = [states for layer in cache.layers for states in (layer.keys, layer.values)]
    return sum(states.numel() * states.element_size() for states in held)


def _told_apart(model: PreTrainedModel, cache: Any, above_weights: int) -> Memory:
    kv = kv_bytes(cache)
    return Memory(weights=_weight_bytes(model), kv=kv, rest=max(0, above_weights - kv))


def _weight_bytes(model: PreTrainedModel) -> int:
    # A tied matrix appears once.
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def _measure(plan: Plan, trial: Trial) -> Memory | None:
    torch.set_num_threads(plan.threads)
    model = load_model(plan.model, plan.shape, trial.dtype, "cpu")
    prompts = random_prompts(model, trial.batch, trial.length)
    run_once(model, trial.method, prompts[:, :WARM_UP_TOKENS], STEPS)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    above = free_bytes(model.device)
    if plan.limit_bytes is not None:
        above = min(above, plan.limit_bytes - _weight_bytes(model))
    reset_peak()
    before = status_bytes("VmRSS")
    try:
        with limited_memory(above):
            cache = run_once(model, trial.method, prompts, STEPS).cache
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return _told_apart(model, cache, status_bytes("VmHWM") - before)


if __name__ == "__main__":
    measured = _measure(*pickle.load(sys.stdin.buffer))
    print(json.dumps(None if measured is None else asdict(measured)))
