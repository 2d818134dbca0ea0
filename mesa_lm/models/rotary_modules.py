"""A model's rotary modules: found, rebuilt where they cannot be asked, and made to compute other frequencies.

transformers is imported where it is used, see `families`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mesa_lm.models.replacing import replace_method

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from mesa_lm.attention.rotary import Rotary


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that compute the model's rotary angles."""
    return [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]


def own_rotary(model: PreTrainedModel) -> nn.Module:
    """Return the module that all of a model's layers are rotated by."""
    return rotary_modules(model)[0]


def rebuilt_rotary(model: PreTrainedModel) -> nn.Module:
    """Return a rotary module for a model whose own one cannot be asked for the angles of a position.

    GPT-J has a table of sines and cosines; Baichuan a module that returns those of all positions from 0.
    """
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = model.config
    view = LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        head_dim=getattr(config, "rotary_dim", None) or config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlamaRotaryEmbedding(view).to(model.device)


def exchange_modules(model: PreTrainedModel, rotary: Rotary, windowed: Sequence[nn.Module], undo: ExitStack) -> None:
    """Let a model's rotary modules compute other angles, but hand their own ones to layers that keep a window.

    Args:
        model: The model.
        rotary: The other frequencies.
        windowed: Attention modules of the layers that keep their frequencies.
        undo: Closing it undoes this.
    """
    for module in rotary_modules(model):
        _exchange(module, rotary.module.forward, windowed, undo)


def _exchange(module: nn.Module, forward: Callable[..., Any], windowed: Sequence[nn.Module], undo: ExitStack) -> None:
    own = module.forward
    plain: dict[str, Any] = {}

    def scaled(*args: Any, **kwargs: Any) -> Any:
        if windowed:
            plain["position_embeddings"] = own(*args, **kwargs)
        return forward(*args, **kwargs)

    def hand_over(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, **plain}

    replace_method(module, "forward", scaled, undo)
    for layer in windowed:
        undo.callback(layer.register_forward_pre_hook(hand_over, with_kwargs=True).remove)
