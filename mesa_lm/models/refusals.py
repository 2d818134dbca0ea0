"""What a method is refused for where it changes attention: caches, training and models of other kinds."""

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from mesa_lm.attention.cache_layer import WovenLayer
from mesa_lm.attention.call import ForwardCall
from mesa_lm.errors import ModelError, UsageError
from mesa_lm.methods.base import Method
from mesa_lm.methods.registry import check_cuts_prompts
from mesa_lm.models.growing_cache import GrowingLayer

# What these hold are the keys and values that the model computed, all of them or those inside a window.
_PLAIN_LAYERS = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    GrowingLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
    WovenLayer,
)


def refuse_other_heads(model: PreTrainedModel) -> None:
    """Refuse a model that does not predict tokens.

    Args:
        model: Of transformers.

    Raises:
        ModelError: It has no language model head, or another one.
    """
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"extrapolate needs a causal language model, and {type(model).__name__} has no language model head; load "
            "it with AutoModelForCausalLM"
        )


def refuse_cache(cache: Cache, method: Method) -> None:
    """Refuse a cache that does not simply keep what the model computes: its layers are to be exchanged.

    Args:
        cache: Given to the model.
        method: That runs.

    Raises:
        ModelError: It compresses keys and values, keeps them elsewhere, or is of a kind that nobody here knows.
    """
    others = [layer for layer in cache.layers if type(layer) not in _PLAIN_LAYERS]
    if type(cache) in (Cache, DynamicCache, StaticCache) and not others and not cache.offloading:
        return
    kind = "an offloaded cache" if cache.offloading else f"a {type(cache).__name__}"
    layers = f" with layers of type {type(others[0]).__name__}" if others else ""
    raise ModelError(
        f"method {method.name!r} cannot fill {kind}{layers} where it changes attention; give a DynamicCache, or none"
    )


def check_cache_place(cache: object, method: Method, device: torch.device) -> None:
    """Refuse to keep keys and values elsewhere than with their layers where that is impossible or pointless.

    Args:
        cache: What the user asked for; None: nothing.
        method: Bound to the model.
        device: Of the model.

    Raises:
        UsageError: It is not "offloaded", or the model itself lies in the host's memory.
        MethodError: The method does not cut prompts into chunks.
    """
    if cache is None:
        return
    if cache != "offloaded":
        raise UsageError(f"cache must be 'offloaded', or left out, found {cache!r}")
    check_cuts_prompts(method, "cache=offloaded")
    if device.type == "cpu":
        raise UsageError("cache=offloaded keeps keys and values in the host's memory, where this model is already")


def refuse_training(model: PreTrainedModel, method: Method, call: ForwardCall) -> None:
    """Refuse a call whose caller waits for gradients, which passes do not have.

    Args:
        model: The model.
        method: That runs.
        call: The call.

    Raises:
        ModelError: The model is in training mode, or its input asks for gradients.
    """
    asks = call.inputs_embeds is not None and call.inputs_embeds.requires_grad
    if torch.is_grad_enabled() and (model.training or asks):
        why = "the model is in training mode" if model.training else "inputs_embeds asks for them"
        raise ModelError(
            f"method {method.name!r} is training-free: where it changes attention it computes no gradients, and {why}; "
            "evaluate with model.eval() and torch.no_grad(), or train on inputs that it leaves alone"
        )
