"""Models of remote code: what transformers' own models do and these do not, and a trial before one is believed."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesa_lm.attention.call import ForwardCall
from mesa_lm.attention.window import LayerWindow
from mesa_lm.errors import ModelError
from mesa_lm.models.pass_runner import PassRunner

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
            output.logits = output.logits[:, logits_to_keep]
        elif logits_to_keep:
            output.logits = output.logits[:, -logits_to_keep:]
        return output

    return keep


def try_out(model: PreTrainedModel, runner: PassRunner) -> None:
    """Compare a model's own logits of a few tokens with those at plain distances under attention of ours.

    Args:
        model: The model.
        runner: Runs its passes.

    Raises:
        ModelError: They differ by more than rounding.
    """
    forward = keeping_logits(model.forward, model)
    tokens = (torch.arange(1, _TRIAL_TOKENS + 1, device=model.device) * 7 % model.config.vocab_size)[None]
    with torch.no_grad():
        expected = forward(input_ids=tokens, use_cache=False, return_dict=True).logits.float()
    found = runner.run(ForwardCall(input_ids=tokens), LayerWindow(window=_TRIAL_TOKENS), forward).logits
    assert found is not None
    error = (found.float() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    allowed = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.05  # the model's own rounding
    if not error < allowed:
        raise ModelError(
            f"the remote code {type(model).__module__} of model type {model.config.model_type!r} does not compute "
            f"what this type stands for: logits of {_TRIAL_TOKENS} tokens differ by {float(error):.1%} of their size; "
            "method 'origin' runs it"
        )
