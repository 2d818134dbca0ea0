"""Know before loading what a model needs, and keep a run from taking the memory of everything else."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import AutoModelForCausalLM

from mesa_lm.models.memory import free_bytes, status_bytes
from mesa_lm.studies.bench.shapes import load_config
from mesa_lm.studies.bench.trials import Plan


def weight_bytes(plan: Plan, dtype: str) -> int:
    """Return what the weights of a plan's model need in a dtype, without loading them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(plan.model, plan.shape), dtype=getattr(torch, dtype))
    # A tied matrix appears once.
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def allowed_bytes(plan: Plan) -> int:
    """Return what a plan may use: what is free on its device, and at most its limit."""
    free = free_bytes(torch.device(plan.device))
    return free if plan.limit_bytes is None else min(free, plan.limit_bytes)


@contextmanager
def limited_memory(above_bytes: int) -> Iterator[None]:
    """Let allocations on the CPU fail, inside, that take this process so many bytes above what it has now.

    Without that, Linux would end processes of its choice. Elsewhere nothing is limited.
    """
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = status_bytes("VmSize") + max(0, above_bytes)
    if before[0] != resource.RLIM_INFINITY:
        most = min(most, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory was not enough, on a GPU or on the CPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and (should_reduce_batch_size(error) or "bad_alloc" in str(error))
