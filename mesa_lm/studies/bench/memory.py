"""Peak memory of a prefill and a few decoding steps, with weights, cache and the rest told apart.

On CPU every measurement has a process of its own, because memory that one method leaves behind serves the next:
`python -m mesa_lm.studies.bench.memory REQUEST` prints the result as JSON.
"""

import ctypes
import gc
import json
import logging
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel

from mesa_lm.attention.cache import WovenCache
from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.models.memory import release, reset_peak, status_bytes
from mesa_lm.studies.bench.models import load_model
from mesa_lm.studies.bench.timing import method_named, random_prompts, run_once

logger = logging.getLogger(__name__)

GIB = 2**30
# Enough to start every thread and library, so that these are not counted.
WARM_UP_TOKENS = 64
STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the peak; their sum is the peak, without interpreter and libraries.

    Attributes:
        weights: Parameters and buffers.
        kv: Keys and values of the tokens in the cache.
        rest: Everything else: activations, room in the cache for more tokens, what the allocator wastes.
    """

    weights: int
    kv: int
    rest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a measuring process is to do.

    Attributes:
        model: Folder or name on the hub; None: the shape.
        shape: As in `models.load_model`.
        method: As in `timing.method_named`.
        options: Its parameters.
        length: Tokens of each prompt.
        batch: Number of prompts.
        dtype: Name of a torch dtype.
        threads: Of torch.
        limit_bytes: What weights, cache and the rest may take; None: what the machine has.
    """

    model: str | None
    shape: str
    method: str
    options: dict[str, Any]
    length: int
    batch: int
    dtype: str
    threads: int
    limit_bytes: int | None


def cpu_memory(request: Request) -> Memory | None:
    """Measure in a process of its own.

    Returns:
        The memory at the peak; None if it is not enough, be it that an allocation fails or that the system kills the
        process.

    Raises:
        ModelError: The process failed otherwise.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(request))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == -9:  # the kernel's answer to a machine without memory
        return None
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").split("\n")[-1]
        raise ModelError(f"measuring the memory of {request.method} at {request.length} tokens failed: {reason}")
    answer = json.loads(done.stdout.strip().split("\n")[-1])
    return None if answer is None else Memory(**answer)


def cuda_memory(model: PreTrainedModel, method: Method | None, length: int, batch: int) -> Memory | None:
    """Measure on the model's CUDA device; None if its memory is not enough."""
    prompts = random_prompts(model, batch, length)
    try:
        run_once(model, method, prompts[:, :WARM_UP_TOKENS], STEPS)
        release(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        cache = run_once(model, method, prompts, STEPS).cache
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return None
    finally:
        release(model.device)
    return _told_apart(model, cache, torch.cuda.max_memory_allocated(model.device) - before)


def kv_bytes(cache: Any) -> int:
    """Return the bytes of the keys and values that a cache holds, without room for more."""
    if isinstance(cache, WovenCache):
        tokens = sum(row.length for row in cache.rows)
        held = [*cache.keys.values(), *cache.values.values()]
        return sum(tokens * states.shape[1] * states.shape[3] * states.element_size() for states in held)
    held = [states for layer in cache.layers for states in (layer.keys, layer.values)]
    return sum(states.numel() * states.element_size() for states in held)


def _told_apart(model: PreTrainedModel, cache: Any, above_weights: int) -> Memory:
    kv = kv_bytes(cache)
    return Memory(weights=_weight_bytes(model), kv=kv, rest=max(0, above_weights - kv))


def _weight_bytes(model: PreTrainedModel) -> int:
    # A tied matrix appears once.
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def _measure(request: Request) -> Memory | None:
    torch.set_num_threads(request.threads)
    model = load_model(request.model, request.shape, request.dtype, "cpu")
    method = method_named(request.method, request.options)
    prompts = random_prompts(model, request.batch, request.length)
    run_once(model, method, prompts[:, :WARM_UP_TOKENS], STEPS)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if request.limit_bytes is not None:
        most = status_bytes("VmSize") + max(0, request.limit_bytes - _weight_bytes(model))
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    reset_peak()
    before = status_bytes("VmRSS")
    try:
        cache = run_once(model, method, prompts, STEPS).cache
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        return None
    return _told_apart(model, cache, status_bytes("VmHWM") - before)


if __name__ == "__main__":
    measured = _measure(Request(**json.loads(sys.argv[1])))
    print(json.dumps(None if measured is None else asdict(measured)))
