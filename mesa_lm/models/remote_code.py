"""Models of remote code: what transformers' own models do and these do not, and a trial before one is believed."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesa_lm.attention.forward import Forward, RunPass
from mesa_lm.attention.layer_groups import Layers
from mesa_lm.attention.model_pass import SlidingWindow
from mesa_lm.errors import ModelError

_TRIAL_TOKENS = 37


def keeping_logits(forward: Callable[..., Any], model: PreTrainedModel) -> Callable[..., Any]:
    """Return a model's forward such that it takes logits_to_keep, which older code does not know.

    Args:
        forward: Of the model.
        model: The model.
    """
    if "logits_to_keep" in inspect.signature(type(model).forward).parameters:
        return forward

    def keep(*args: Any, logits_to_keep: int | Tensor = 0, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(logits_to_keep, Tensor):
            kept = logits_to_keep if logits_to_keep.ndim == 2 else (slice(None), logits_to_keep)
            output.logits = output.logits[kept]
        elif logits_to_keep:
            output.logits = output.logits[:, -logits_to_keep:]
        return output

    return keep


def try_out(
    model: PreTrainedModel,
    layers: Layers,
    forward: Callable[..., Any],
    run_pass: RunPass,
    own_attention: Callable[[], AbstractContextManager[None]],
) -> None:
    """Compare a model's own logits of a few tokens with those at plain distances under attention of ours.

    Args:
        model: The model.
        layers: Its layers.
        forward: Its own forward.
        run_pass: See `Forward`.
        own_attention: Inside it the model's attention is replaced by ours.

    Raises:
        ModelError: They differ by more than rounding.
    """
    vocab = model.config.vocab_size
    tokens = (torch.arange(1, _TRIAL_TOKENS + 1, device=model.device) * 7 % vocab)[None]
    with torch.no_grad():
        expected = forward(input_ids=tokens, use_cache=False, return_dict=True).logits.float()
        plain = SlidingWindow(window=_TRIAL_TOKENS)
        nothing: dict[str, Any] = dict.fromkeys(("inputs_embeds", "attention_mask", "position_ids", "cache"))
        with own_attention():
            call = Forward(plain, layers, run_pass, input_ids=tokens, use_cache=False, logits_to_keep=0, **nothing)
            found = call.run()
    assert found.logits is not None
    error = (found.logits.float() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    allowed = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.05  # the model's own rounding
    if not error < allowed:
        raise ModelError(
            f"the remote code {type(model).__module__} of model type {model.config.model_type!r} does not compute "
            f"what this type stands for: logits of {_TRIAL_TOKENS} tokens differ by {float(error):.1%} of their size; "
            "method 'origin' runs it"
        )
