"""Forwards for attention modules that do not go through transformers' AttentionInterface.

Each does what its module's own forward does, projections included, but for position encoding, cache and softmax, which
a function of ours does in their place. Nothing is imported with this module, see `families`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Attention of a layer: query, key and value, each (batch, heads, len, head_dim), and the factor of the scores.
Attend = Callable[["Tensor", "Tensor", "Tensor", float], "Tensor"]
# Called with the module, its layer's attention and what the module's own forward is given; returns what that returns.
AttentionForward = Callable[..., "tuple[Tensor | None, ...]"]


def gptj_forward(module: Any, attend: Attend, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    """GPT-J: three projections."""
    shape = (*hidden_states.shape[:2], module.num_attention_heads, module.head_dim)
    query, key, value = (
        projection(hidden_states).view(shape).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    output = _merged(attend(query, key, value, 1 / float(module.scale_attn)))
    return module.resid_dropout(module.out_proj(output)), None


def falcon_forward(module: Any, attend: Attend, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Falcon: one projection, its heads split by the module."""
    states = module._split_heads(module.query_key_value(hidden_states))
    query, key, value = (heads.transpose(1, 2) for heads in states)
    return module.dense(_merged(attend(query, key, value, module.inv_norm_factor))), None


def mpt_forward(module: Any, attend: Attend, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """MPT: one projection, clipped if the config says so."""
    mixed = module.Wqkv(hidden_states)
    if module.clip_qkv:
        mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
    shape = (*hidden_states.shape[:2], module.n_heads, module.head_dim)
    query, key, value = (states.reshape(shape).transpose(1, 2) for states in mixed.chunk(3, dim=2))
    return module.out_proj(_merged(attend(query, key, value, module.softmax_scale))), None


def bloom_forward(
    module: Any, attend: Attend, hidden_states: Tensor, residual: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """BLOOM: one projection, its heads split by the module; the residual is added here."""
    from torch.nn.functional import dropout

    query, key, value = module._reshape(module.query_key_value(hidden_states))
    output = module.dense(_merged(attend(query, key, value, module.inv_norm_factor)))
    return residual + dropout(output, p=module.hidden_dropout, training=module.training), None


def packed_forward(module: Any, attend: Attend, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None, None]:
    """Baichuan: one projection, query, key and value one after another; the third result stands for a cache."""
    shape = (*hidden_states.shape[:2], module.num_heads, module.head_dim)
    query, key, value = (states.reshape(shape).transpose(1, 2) for states in module.W_pack(hidden_states).chunk(3, -1))
    return module.o_proj(_merged(attend(query, key, value, float(module.head_dim) ** -0.5))), None, None


def _merged(output: Tensor) -> Tensor:
    """Turn (batch, heads, len, head_dim) into (batch, len, heads * head_dim)."""
    return output.transpose(1, 2).flatten(2)
