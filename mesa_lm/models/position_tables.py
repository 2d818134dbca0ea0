"""Position tables that end at the training length, made longer: without that, these models fail beyond it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from mesa_lm.models.replacing import replaced


def lengthen_tables(model: PreTrainedModel) -> Callable[[], None]:
    """Let MPT and GPT-J run inputs of any length; up to the training length nothing changes, other models neither.

    transformers builds MPT's bias and GPT-J's sines and cosines for the config's length and fails beyond it; a longer
    table has the same values, and more of them.

    Args:
        model: Any model of transformers.

    Returns:
        A function that undoes it.
    """
    undo = ExitStack()
    if model.config.model_type == "mpt":
        undo.callback(_lengthen_mpt(model.base_model))
    if model.config.model_type == "gptj":
        for module in model.modules():
            if hasattr(module, "_get_embed_positions"):
                undo.callback(_lengthen_gptj(module))
    return undo.close


def _lengthen_mpt(inner: Any) -> Callable[[], None]:
    needed = 0

    def measure(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal needed
        tokens = kwargs.get("input_ids", args[0] if args else None)
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        cache = kwargs.get("past_key_values")
        needed = 0 if tokens is None else tokens.shape[1] + (0 if cache is None else cache.get_seq_length())

    original = inner.build_mpt_alibi_tensor

    def build(num_heads: int, sequence_length: int, *args: Any, **kwargs: Any) -> Tensor:
        bias: Tensor = original(num_heads, max(sequence_length, needed), *args, **kwargs)
        return bias

    hook = inner.register_forward_pre_hook(measure, with_kwargs=True)
    restore = replaced(inner, "build_mpt_alibi_tensor", build)

    def undo() -> None:
        hook.remove()
        restore()

    return undo


def _lengthen_gptj(module: Any) -> Callable[[], None]:
    original = module._get_embed_positions
    create = sys.modules[type(module).__module__].create_sinusoidal_positions

    def table(position_ids: Tensor) -> Tensor:
        longest = int(position_ids.max()) + 1
        if longest <= module.embed_positions.shape[0]:
            own: Tensor = original(position_ids)
            return own
        longer: Tensor = create(longest, module.pos_embd_dim).to(position_ids.device)
        return longer.repeat(position_ids.shape[0], 1, 1)

    return replaced(module, "_get_embed_positions", table)
