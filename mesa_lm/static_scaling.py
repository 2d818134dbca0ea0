"""Rotary scaling that is the same for every input: the model computes with other frequencies, nothing else differs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesa_lm.layers import Layers
from mesa_lm.methods import Method
from mesa_lm.rotary import Rotary
from mesa_lm.structure import rotary_modules


class StaticScaling:
    """Other frequencies in the layers that see everything, until removed; layers that keep their window keep theirs."""

    def __init__(
        self, model: PreTrainedModel, layers: Layers, method: Method, attention: list[nn.Module]
    ) -> None:
        """Replace the frequencies.

        Args:
            model: Of a supported type with rotary positions.
            layers: Its layers.
            method: With `static_rope`.
            attention: The attention module of each layer.
        """
        self._undo: list[Callable[[], None]] = []
        changed = [group.encoding for group in layers.groups if group.window is None]
        scaled = [rotary for rotary in changed if isinstance(rotary, Rotary)]
        if not scaled:
            return
        last: Rotary | None = None
        for rotary in scaled:
            parameters = method.rope_parameters(rotary.config, total=0)
            assert parameters is not None
            # A module with several sets of frequencies gets them one after another.
            before = rotary if last is None else last.for_kind(rotary.layer_type)
            last = before.scaled(parameters, total=0)
        assert last is not None
        if model.config.model_type == "gptj":
            self._replace_tables(attention, last)
            return
        windowed = [module for i, module in enumerate(attention) if layers.of(i).window is not None]
        shares = last.layer_type is None and bool(windowed)
        for module in rotary_modules(model):
            self._replace_forward(module, last.module.forward, windowed if shares else [])

    def remove(self) -> None:
        """Give the model its own frequencies back."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _replace_forward(self, module: nn.Module, forward: Callable[..., Any], windowed: list[nn.Module]) -> None:
        """Let a rotary module compute scaled angles, but hand its own ones to the layers that keep a window."""
        own = module.forward
        plain: dict[str, Any] = {}

        def scaled(*args: Any, **kwargs: Any) -> Any:
            if windowed:
                plain["position_embeddings"] = own(*args, **kwargs)
            return forward(*args, **kwargs)

        previous = module.__dict__.get("forward")
        module.forward = scaled

        def restore() -> None:
            if previous is None:
                del module.forward
            else:
                module.forward = previous

        self._undo.append(restore)
        for layer in windowed:
            hook = layer.register_forward_pre_hook(
                lambda _module, args, kwargs: (args, {**kwargs, **plain}), with_kwargs=True
            )
            self._undo.append(hook.remove)

    def _replace_tables(self, attention: list[nn.Module], rotary: Rotary) -> None:
        """Let GPT-J's attention look up scaled sines and cosines."""

        def table(position_ids: Tensor) -> Tensor:
            positions = torch.arange(int(position_ids.max()) + 1)
            angles = rotary.angles(positions[None], torch.float32)
            half = angles.cos.shape[-1] // 2
            both = torch.cat([angles.sin[..., :half], angles.cos[..., :half]], dim=-1)
            return both.to(position_ids.device).repeat(position_ids.shape[0], 1, 1)

        for module in attention:
            module._get_embed_positions = table  # type: ignore[assignment]
            self._undo.append(lambda module=module: delattr(module, "_get_embed_positions"))  # type: ignore[misc]
