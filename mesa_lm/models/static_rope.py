"""Rotary scaling that is the same for every input: the model computes with other frequencies, nothing else differs."""

from contextlib import ExitStack

from torch import nn
from transformers import PreTrainedModel

from mesa_lm.attention.layer_groups import Layers
from mesa_lm.attention.rotary import Rotary
from mesa_lm.methods.base import Method
from mesa_lm.models.families import family_of


def scale_statically(
    model: PreTrainedModel, layers: Layers, attention: list[nn.Module], method: Method, undo: ExitStack
) -> None:
    """Give other frequencies to the layers that see everything; layers that keep their window keep theirs.

    Args:
        model: Of a supported type with rotary positions.
        layers: Its layers.
        attention: The attention module of each layer.
        method: With `static_rope`.
        undo: Closing it gives the model its own frequencies back.
    """
    scaled: Rotary | None = None
    for rotary in (group.encoding for group in layers.groups if group.window is None):
        assert isinstance(rotary, Rotary), "refused before"
        parameters = method.rope_parameters(rotary.config, total=0)
        assert parameters is not None
        # A module with several sets of frequencies gets them one after another.
        before = rotary if scaled is None else scaled.for_kind(rotary.layer_type)
        scaled = before.scaled(parameters, total=0)
    if scaled is None:
        return
    # With a set of frequencies for each kind of layer, those of layers with a window have not changed.
    shared = scaled.layer_type is None
    windowed = [module for i, module in enumerate(attention) if shared and layers.of(i).window is not None]
    family_of(model.config).exchange_rotary(model, scaled, windowed, undo)
