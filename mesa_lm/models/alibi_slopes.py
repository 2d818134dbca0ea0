"""The slope of each head under ALiBi, taken from what each family's own code builds.

torch is imported where it is used, see `families`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def mpt_slopes(model: PreTrainedModel) -> Tensor:
    """Return MPT's slopes, (num_heads,)."""
    inner: Any = model.base_model
    build = type(inner).build_mpt_alibi_tensor  # an attached method lets the model's own build more
    return _rise(build(inner, model.config.num_attention_heads, 2, device=model.device))


def bloom_slopes(model: PreTrainedModel) -> Tensor:
    """Return BLOOM's slopes, (num_heads,)."""
    import torch

    inner: Any = model.base_model
    mask = torch.ones(1, 2, device=model.device)
    return _rise(inner.build_alibi_tensor(mask, model.config.num_attention_heads, torch.float32))


def falcon_slopes(model: PreTrainedModel) -> Tensor:
    """Return Falcon's slopes, (num_heads,): its bias is added before the scores are scaled."""
    import torch

    heads = model.config.num_attention_heads
    bias = _module_of(model).build_alibi_tensor(torch.ones(1, 2, device=model.device), heads, torch.float32)
    return _rise(bias * (model.config.hidden_size // heads) ** -0.5)


def baichuan_slopes(model: PreTrainedModel) -> Tensor:
    """Return Baichuan's slopes, (num_heads,)."""
    import torch

    return torch.tensor(_module_of(model)._get_interleave(model.config.num_attention_heads), device=model.device)


def _module_of(model: PreTrainedModel) -> Any:
    """Return the Python module that holds a model's class."""
    return sys.modules[type(model.base_model).__module__]


def _rise(bias: Tensor) -> Tensor:
    """Return how much a bias rises, for each head, from one key to the next."""
    at_first, at_second = bias.float().reshape(-1, 2).unbind(1)
    return at_second - at_first
