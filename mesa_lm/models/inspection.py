"""Find a model's attention and rotary modules, check that they are what they are taken for, and group its layers."""

import sys
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from mesa_lm.attention.alibi import Alibi
from mesa_lm.attention.layer_groups import Group, Layers
from mesa_lm.attention.rotary import Encoding, Rotary
from mesa_lm.errors import ModelError
from mesa_lm.models.families import Family, family_of, layer_windows, rope_sets, uses_alibi


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the attention module of each layer.

    Args:
        model: Of a supported type.

    Raises:
        ModelError: One is not of a class that the engine knows, or a layer has none.
    """
    config = model.config
    family = family_of(config)
    home = f"transformers.models.{family.folder}.modeling_{family.folder}" if family.folder else "transformers_modules"
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if "attention" not in kind.__name__.lower():
            continue
        at_home = kind.__module__ == home if family.folder else kind.__module__.split(".")[0] == home
        if kind.__name__ not in family.attention or not at_home or not _is_complete(module, family):
            raise ModelError(
                f"the attention module {kind.__module__}.{kind.__qualname__} at {name!r} is not one that methods "
                f"understand; model type {config.model_type!r} has {' or '.join(family.attention)} of {home}"
            )
        found[int(getattr(module, "layer_idx", len(found)))] = module
    if sorted(found) != list(range(config.num_hidden_layers)):
        raise ModelError(
            f"model type {config.model_type!r} has {config.num_hidden_layers} layers, but attention modules were found "
            f"in layers {sorted(found)}"
        )
    return [found[layer] for layer in sorted(found)]


def _is_complete(module: nn.Module, family: Family) -> bool:
    """Tell whether a module of remote code has what `own_calls.packed` uses."""
    return family.folder is not None or all(hasattr(module, x) for x in ("W_pack", "o_proj", "num_heads", "head_dim"))


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that compute the model's rotary angles."""
    return [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]


def layers_of(model: PreTrainedModel, train_length: int | None) -> Layers:
    """Group a model's layers by position encoding and window.

    A sliding window of at most the training length stays as it is under every method: its distances never are new to
    the model.

    Args:
        model: Of a supported type, its attention modules checked.
        train_length: T in tokens; None if the config names none.
    """
    config, family = model.config, family_of(model.config)
    kept = [
        window if window is not None and (train_length is None or window <= train_length) else None
        for window in layer_windows(config)
    ]
    if uses_alibi(config):
        return Layers((Group(Alibi(_slopes(model), model.dtype)),), (0,) * len(kept))
    groups: dict[tuple[str | None, int | None, bool], int] = {}
    encodings: list[Group] = []
    group_of = []
    for layer, window in enumerate(kept):
        kind = None if None in rope_sets(config) else config.layer_types[layer]
        plain = family.plain_full_layers and layer_windows(config)[layer] is None
        mark = (kind, window, plain)
        if mark not in groups:
            groups[mark] = len(encodings)
            encodings.append(Group(_encoding(model, family, kind, plain), window))
        group_of.append(groups[mark])
    return Layers(tuple(encodings), tuple(group_of))


def _encoding(model: PreTrainedModel, family: Family, kind: str | None, plain: bool) -> Encoding:
    if model.config.model_type in ("gptj", "baichuan"):
        return Rotary(rebuilt_rotary(model), model.dtype, interleaved=family.interleaved)
    module = rotary_modules(model)[0]
    rotary = Rotary(module, model.dtype, kind, family.interleaved, family.interleaved_angles)
    return Encoding(rotary.device, model.dtype) if plain else rotary


def rebuilt_rotary(model: PreTrainedModel) -> nn.Module:
    """Return a rotary module for a model whose own one cannot be asked for the angles of a position.

    GPT-J has a table of sines and cosines; Baichuan a module that returns those of all positions from 0.
    """
    config = model.config
    view = LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        head_dim=getattr(config, "rotary_dim", None) or config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return LlamaRotaryEmbedding(view).to(model.device)


def _slopes(model: PreTrainedModel) -> torch.Tensor:
    """Return the slope of each head, from the model's own bias of two neighbouring keys."""
    heads, device = model.config.num_attention_heads, model.device
    both: torch.Tensor
    inner: Any = model.base_model
    match model.config.model_type:
        case "mpt":
            both = inner.build_mpt_alibi_tensor(heads, 2, device=device)
        case "bloom":
            both = inner.build_alibi_tensor(torch.ones(1, 2, device=device), heads, torch.float32)
        case "falcon":
            build = sys.modules[type(inner).__module__].build_alibi_tensor
            # Falcon adds its bias before the scores are scaled.
            both = (
                build(torch.ones(1, 2, device=device), heads, torch.float32)
                * (model.config.hidden_size // heads) ** -0.5
            )
        case _:
            return torch.tensor(sys.modules[type(inner).__module__]._get_interleave(heads), device=device)
    at_first, at_second = both.float().reshape(heads, 2).unbind(1)
    return at_second - at_first
