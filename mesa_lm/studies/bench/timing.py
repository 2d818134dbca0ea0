"""Run one prefill and some decoding steps of a method, and time them."""

import time
from contextlib import nullcontext
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Method
from mesa_lm.methods.registry import make_method
from mesa_lm.models.attach import extrapolate

STOCK_NAME = "stock"  # transformers without mesa_lm, which all methods are compared with


class TimedRun(NamedTuple):
    """What one run of a method took.

    Attributes:
        prefill_s: Seconds of the prefill, logits of the last token alone.
        decode_s: Median seconds of a decoding step, one token per sequence.
        cache: The cache after the last step.
    """

    prefill_s: float
    decode_s: float
    cache: Any


def method_named(name: str, options: dict[str, Any]) -> Method | None:
    """Return a method, None for `STOCK_NAME`.

    Raises:
        MethodError: Unknown name or parameter, or a value out of range.
    """
    if name != STOCK_NAME:
        return make_method(name, **options)
    if options:
        raise MethodError(f"{STOCK_NAME} is transformers alone and has no parameters, found {', '.join(options)}")
    return None


def random_prompts(model: PreTrainedModel, batch: int, length: int) -> Tensor:
    """Return (batch, length) token ids, the same for every method."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.randint(vocabulary, (batch, length), generator=generator).to(model.device)


def run_once(model: PreTrainedModel, method: Method | None, prompts: Tensor, steps: int) -> TimedRun:
    """Prefill prompts and decode greedily.

    Args:
        model: The model; the method is attached for the run.
        method: The method; None: transformers alone.
        prompts: (batch, length) token ids.
        steps: Tokens to decode, at least 1.
    """
    attached = nullcontext() if method is None else extrapolate(model, method)
    with attached, torch.no_grad():
        start = now(model)
        output = model(prompts, use_cache=True, logits_to_keep=1)
        prefill_s = now(model) - start
        taken = []
        for _ in range(steps):
            token = output.logits[:, -1:].argmax(-1)
            start = now(model)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            taken.append(now(model) - start)
    return TimedRun(prefill_s, median(taken), output.past_key_values)


def now(model: PreTrainedModel) -> float:
    """Return the time at which the device has done all work, in seconds."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
