"""Rotary scaling that is the same for every input: the model computes with other frequencies, nothing else differs."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesa_lm.attention.layer_groups import Layers
from mesa_lm.attention.rotary import Rotary
from mesa_lm.methods.base import Method
from mesa_lm.models.inspection import rotary_modules
from mesa_lm.models.replacing import replaced


def scale_statically(
    model: PreTrainedModel, layers: Layers, method: Method, attention: list[nn.Module]
) -> Callable[[], None]:
    """Give other frequencies to the layers that see everything; layers that keep their window keep theirs.

    Args:
        model: Of a supported type with rotary positions.
        layers: Its layers.
        method: With `static_rope`.
        attention: The attention module of each layer.

    Returns:
        A function that gives the model its own frequencies back.
    """
    undo = ExitStack()
    changed = [group.encoding for group in layers.groups if group.window is None]
    last: Rotary | None = None
    for rotary in changed:
        assert isinstance(rotary, Rotary), "refused before"
        parameters = method.rope_parameters(rotary.config, total=0)
        assert parameters is not None
        # A module with several sets of frequencies gets them one after another.
        before = rotary if last is None else last.for_kind(rotary.layer_type)
        last = before.scaled(parameters, total=0)
    if last is None:
        return undo.close
    if model.config.model_type == "gptj":
        for module in attention:
            undo.callback(replaced(module, "_get_embed_positions", partial(_table, last)))
        return undo.close
    shared = last.layer_type is None
    windowed = [module for i, module in enumerate(attention) if shared and layers.of(i).window is not None]
    for module in rotary_modules(model):
        _replace_forward(module, last.module.forward, windowed, undo)
    return undo.close


def _replace_forward(
    module: nn.Module, forward: Callable[..., Any], windowed: list[nn.Module], undo: ExitStack
) -> None:
    """Let a rotary module compute scaled angles, but hand its own ones to the layers that keep a window."""
    own = module.forward
    plain: dict[str, Any] = {}

    def scaled(*args: Any, **kwargs: Any) -> Any:
        if windowed:
            plain["position_embeddings"] = own(*args, **kwargs)
        return forward(*args, **kwargs)

    def hand_over(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, **plain}

    undo.callback(replaced(module, "forward", scaled))
    for layer in windowed:
        undo.callback(layer.register_forward_pre_hook(hand_over, with_kwargs=True).remove)


def _table(rotary: Rotary, position_ids: Tensor) -> Tensor:
    """Return sines and cosines of all positions as GPT-J's attention looks them up, (batch, len, rotary_dim)."""
    positions = torch.arange(int(position_ids.max()) + 1)
    angles = rotary.angles(positions[None], torch.float32)
    half = angles.cos.shape[-1] // 2
    both = torch.cat([angles.sin[..., :half], angles.cos[..., :half]], dim=-1)
    return both.to(position_ids.device).repeat(position_ids.shape[0], 1, 1)
