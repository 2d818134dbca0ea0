"""Rotary scaling that is the same for every input: the model computes with other frequencies, nothing else differs."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mesa_lm.attention.cache_layer import frequencies_of, given_cache, note_frequencies
from mesa_lm.attention.layer_groups import Layers
from mesa_lm.attention.rotary import Rotary
from mesa_lm.methods.base import Method
from mesa_lm.models.families import family_of
from mesa_lm.models.growing_cache import with_growing_cache
from mesa_lm.models.handle import Handle
from mesa_lm.models.position_tables import input_length
from mesa_lm.models.tested_versions import is_tested
from mesa_lm.models.trial import check_exchanged


class StaticRopeHandle(Handle):
    """A model that runs with other frequencies in the layers that see everything; the others keep theirs."""

    def __init__(self, model: PreTrainedModel, method: Method, layers: Layers, attention: list[nn.Module]) -> None:
        super().__init__(model, method, layers)
        self._scaled = _scaled(layers, method)
        # With a set of frequencies for each kind of layer, those of layers with a window do not change.
        shared = self._scaled is not None and self._scaled.layer_type is None
        self._windowed = [module for i, module in enumerate(attention) if shared and layers.of(i).window is not None]

    def _replacement(self, forward: Callable[..., Any], undo: ExitStack) -> Callable[..., Any]:
        if self._scaled is not None:
            family, model, rotary = family_of(self.model.config), self.model, self._scaled
            exchange = functools.partial(family.exchange_rotary, model, rotary, self._windowed, undo)
            if is_tested() or not self._differs(rotary):
                exchange()
            else:
                check_exchanged(model, exchange)
        growing = with_growing_cache(forward, self.model)

        def scaled(*args: Any, **kwargs: Any) -> Any:
            if (
                torch.compiler.is_compiling()
            ):  # what follows is no part of a graph, a static cache's length least of all
                return growing(*args, **kwargs)
            self._warn_beyond(input_length(args, kwargs))
            with frequencies_of(self.method):
                output = growing(*args, **kwargs)
            returned = given_cache(output, {}) if isinstance(output, tuple) else given_cache((), output)
            for cache in (given_cache(args, kwargs), returned):
                if cache is not None:
                    note_frequencies(cache, self.method)
            return output

        return scaled

    def _differs(self, rotary: Rotary) -> bool:
        """Tell whether frequencies are others than the model's own."""
        assert self.layers is not None
        position = torch.arange(2)[None]
        own = [group.encoding.angles(position).cos for group in self.layers.groups if group.window is None]
        return not torch.equal(own[0], rotary.angles(position).cos)


def _scaled(layers: Layers, method: Method) -> Rotary | None:
    """Return a method's frequencies, None where every layer keeps a window."""
    scaled: Rotary | None = None
    for rotary in (group.encoding for group in layers.groups if group.window is None):
        assert isinstance(rotary, Rotary), "refused before"
        parameters = method.rope_parameters(rotary.config, total=0)
        assert parameters is not None
        # A module with several sets of frequencies gets them one after another.
        before = rotary if scaled is None else scaled.for_kind(rotary.layer_type)
        scaled = before.scaled(parameters, total=0)
    return scaled
