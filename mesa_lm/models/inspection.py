"""Find a model's attention modules, check that they are what they are taken for, and group its layers."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mesa_lm.attention.alibi import Alibi
from mesa_lm.attention.encoding import Encoding
from mesa_lm.attention.layer_groups import LayerGroup, Layers
from mesa_lm.attention.rotary import Rotary
from mesa_lm.errors import MethodError, ModelError
from mesa_lm.methods.train_length import train_length_of
from mesa_lm.models.families import family_of, layer_windows, rope_sets


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the attention module of each layer.

    Args:
        model: Of a supported type.

    Raises:
        ModelError: One is not of a class that the engine knows, or a layer has none.
    """
    config = model.config
    family = family_of(config)
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        kind = type(module)
        if "attention" not in kind.__name__.lower():
            continue
        at_home = kind.__module__ == family.home or kind.__module__.startswith(f"{family.home}.")
        is_complete = all(hasattr(module, attribute) for attribute in family.attributes)
        if kind.__name__ not in family.attention or not at_home or not is_complete:
            raise ModelError(
                f"the attention module {kind.__module__}.{kind.__qualname__} at {name!r} is not one that methods "
                f"understand; model type {config.model_type!r} has {' or '.join(family.attention)} of {family.home}"
            )
        found[int(getattr(module, "layer_idx", len(found)))] = module
    if sorted(found) != list(range(config.num_hidden_layers)):
        raise ModelError(
            f"model type {config.model_type!r} has {config.num_hidden_layers} layers, but attention modules were found "
            f"in layers {sorted(found)}"
        )
    return [found[layer] for layer in sorted(found)]


def layers_of(model: PreTrainedModel, train_length: int | None) -> Layers:
    """Group a model's layers by position encoding and window.

    A sliding window of at most the training length stays as it is under every method: its distances never are new to
    the model.

    Args:
        model: Of a supported type, its attention modules checked.
        train_length: T in tokens; None if the config names none.
    """
    config, family = model.config, family_of(model.config)
    windows = layer_windows(config)
    kept = [
        window if window is not None and (train_length is None or window <= train_length) else None
        for window in windows
    ]
    if family.slopes is not None and family.uses_alibi(config):
        return Layers((LayerGroup(Alibi(family.slopes(model), model.dtype)),), (0,) * len(kept))
    one_set = None in rope_sets(config)
    marks = [
        (None if one_set else config.layer_types[layer], window, family.plain_full_layers and windows[layer] is None)
        for layer, window in enumerate(kept)
    ]
    kinds = list(dict.fromkeys(marks))
    groups = tuple(LayerGroup(_encoding(model, kind, plain), window) for kind, window, plain in kinds)
    return Layers(groups, tuple(kinds.index(mark) for mark in marks))


def _encoding(model: PreTrainedModel, kind: str | None, plain: bool) -> Encoding:
    """Return the encoding of one kind of layer, `plain` if it has no positions."""
    family = family_of(model.config)
    rotary = Rotary(family.rotary(model), model.dtype, kind, family.interleaved, family.interleaved_angles)
    return Encoding(rotary.device, model.dtype) if plain else rotary


def known_train_length(config: Any) -> int | None:
    """Return a model's training length in tokens, None where its config names none."""
    try:
        return train_length_of(config)
    except MethodError:
        return None
