"""Position tables of MPT and GPT-J: longer than the training length, where they fail, and of other frequencies.

transformers builds MPT's bias and GPT-J's sines and cosines for the config's length; a longer table has the same
values, and more of them. Each function adds to `undo` what undoes its changes. torch is imported where it is used, see
`families`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mesa_lm.models.replacing import replace_method

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from mesa_lm.attention.rotary import Rotary


def input_length(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many tokens a model's call is given, cached ones included; 0 if none.

    Args:
        args: Positional arguments of its forward.
        kwargs: Keyword arguments.
    """
    given = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    tokens = next((value for value in given if value is not None), None)
    cache = kwargs.get("past_key_values")
    return 0 if tokens is None else tokens.shape[1] + (0 if cache is None else cache.get_seq_length())


def lengthen_mpt(model: PreTrainedModel, undo: ExitStack) -> None:
    """Let MPT build its bias for inputs of any length."""
    inner: Any = model.base_model
    original = inner.build_mpt_alibi_tensor
    needed = 0

    def measure(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal needed
        needed = input_length(args, kwargs)

    def build(num_heads: int, sequence_length: int, *args: Any, **kwargs: Any) -> Tensor:
        bias: Tensor = original(num_heads, max(sequence_length, needed), *args, **kwargs)
        return bias

    undo.callback(inner.register_forward_pre_hook(measure, with_kwargs=True).remove)
    replace_method(inner, "build_mpt_alibi_tensor", build, undo)


def lengthen_gptj(model: PreTrainedModel, undo: ExitStack) -> None:
    """Let GPT-J look up sines and cosines of any position."""
    _replace_tables(model, _longer_table, undo)


def exchange_tables(model: PreTrainedModel, rotary: Rotary, windowed: Sequence[nn.Module], undo: ExitStack) -> None:
    """Let GPT-J, which has no layers with a window, look up sines and cosines of other frequencies."""
    _replace_tables(model, lambda module: lambda position_ids: _table(rotary, position_ids), undo)


def _replace_tables(
    model: PreTrainedModel, table_of: Callable[[Any], Callable[[Tensor], Tensor]], undo: ExitStack
) -> None:
    """Replace what GPT-J's attention modules look up: (batch, len, rotary_dim) for (batch, len) positions."""
    for module in model.modules():
        if hasattr(module, "_get_embed_positions"):
            replace_method(module, "_get_embed_positions", table_of(module), undo)


def _longer_table(module: Any) -> Callable[[Tensor], Tensor]:
    original = module._get_embed_positions
    create = sys.modules[type(module).__module__].create_sinusoidal_positions

    def table(position_ids: Tensor) -> Tensor:
        longest = int(position_ids.max()) + 1
        if longest <= module.embed_positions.shape[0]:
            own: Tensor = original(position_ids)
            return own
        longer: Tensor = create(longest, module.pos_embd_dim).to(position_ids.device)
        return longer.repeat(position_ids.shape[0], 1, 1)

    return table


def _table(rotary: Rotary, position_ids: Tensor) -> Tensor:
    """Return sines and cosines of all positions as GPT-J's attention looks them up, (batch, len, rotary_dim)."""
    import torch

    positions = torch.arange(int(position_ids.max()) + 1)
    angles = rotary.angles(positions[None], torch.float32)
    half = angles.cos.shape[-1] // 2
    both = torch.cat([angles.sin[..., :half], angles.cos[..., :half]], dim=-1)
    return both.to(position_ids.device).repeat(position_ids.shape[0], 1, 1)
