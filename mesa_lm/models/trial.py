"""A trial of a few tokens, before code that this release was not tested with is believed.

Such code comes with a model's weights, or with another version of transformers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from mesa_lm.attention.call import ForwardCall
from mesa_lm.attention.window import LayerWindow
from mesa_lm.errors import ModelError
from mesa_lm.models.families import family_of
from mesa_lm.models.inspection import known_train_length
from mesa_lm.models.pass_runner import PassRunner
from mesa_lm.models.remote_code import keeping_logits
from mesa_lm.models.tested_versions import NEWEST_TESTED, OLDEST_TESTED, is_tested

_MOST_TOKENS = 37


def needs_trial(model: PreTrainedModel) -> bool:
    """Return whether a model's code is none that this release was tested with."""
    return family_of(model.config).is_remote_code or not is_tested()


def try_out(model: PreTrainedModel, runner: PassRunner) -> None:
    """Compare a model's own logits of a few tokens with those at plain distances under attention of ours.

    Args:
        model: The model.
        runner: Runs its passes.

    Raises:
        ModelError: They differ by more than rounding.
    """
    forward = keeping_logits(model.forward, model)
    tokens = _tokens(model)
    with _evaluating(model):
        expected = forward(input_ids=tokens, use_cache=False, return_dict=True).logits.float()
        found = runner.run(ForwardCall(input_ids=tokens), LayerWindow(window=tokens.shape[1]), forward).logits
    assert found is not None
    error = (found.float() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
    allowed = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.05  # the model's own rounding
    if not error < allowed:
        remote = family_of(model.config).is_remote_code
        code = f"remote code {type(model).__module__}" if remote else f"transformers {transformers.__version__}"
        advice = "" if remote else f"use transformers {OLDEST_TESTED} to {NEWEST_TESTED}; "
        raise ModelError(
            f"the {code} does not compute what model type {model.config.model_type!r} stands for here: logits of "
            f"{tokens.shape[1]} tokens differ by {float(error):.1%} of their size; {advice}method 'origin' runs it"
        )


def check_exchanged(model: PreTrainedModel, exchange: Callable[[], None]) -> None:
    """Exchange a model's frequencies and check that it computes with the new ones.

    Args:
        model: The model.
        exchange: Exchanges them; they differ.

    Raises:
        ModelError: Its logits are what they were.
    """
    tokens, logits = _tokens(model), []
    with _evaluating(model):
        logits.append(model(input_ids=tokens, use_cache=False, return_dict=True).logits)
        exchange()
        logits.append(model(input_ids=tokens, use_cache=False, return_dict=True).logits)
    if torch.equal(*logits):
        raise ModelError(
            f"in transformers {transformers.__version__} model type {model.config.model_type!r} does not take the "
            f"frequencies of its rotary module; use transformers {OLDEST_TESTED} to {NEWEST_TESTED}"
        )


def _tokens(model: PreTrainedModel) -> Tensor:
    """Return what a model is tried out with, (1, len)."""
    count = min(_MOST_TOKENS, known_train_length(model.config) or _MOST_TOKENS)
    tokens = torch.arange(1, count + 1, device=model.device) * 7 % int(model.config.vocab_size)
    return tokens[None]


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Leave dropout out, which would make any two answers differ, and compute no gradients."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
