"""Models of remote code: what transformers' own models do and these do not."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


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
