"""Rotary positions with the frequencies of the model's own rotary module, at any positions."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mesa_lm.attention.encoding import Angles, Encoding, rotate


class Rotary(Encoding):
    """The model's own rotary frequencies, asked for angles at any positions.

    The model's rotary module is called, so that every RoPE scaling it implements holds here as well, and angles are
    float32 products of position and inverse frequency, as everywhere in transformers. Models that rotate neighbouring
    components have their queries and keys reordered, which leaves every score what it is.
    """

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        layer_type: str | None = None,
        interleaved: bool = False,
        interleaved_angles: bool = False,
    ) -> None:
        """Wrap a rotary module.

        Args:
            module: Called with (states, position_ids), returns cosines and sines in the states' dtype.
            dtype: Of the model's queries and keys.
            layer_type: Which of the module's sets of frequencies, if it has one for each kind of layer.
            interleaved: The model rotates component 2m with component 2m + 1, else m with m + rotary_dim / 2.
            interleaved_angles: The module repeats each cosine at once, else all of them one after another.
        """
        prefix = "" if layer_type is None else f"{layer_type}_"
        inverse_frequencies = getattr(module, f"{prefix}inv_freq")
        assert isinstance(inverse_frequencies, Tensor)
        super().__init__(inverse_frequencies.device, dtype)
        self._inverse_frequencies = inverse_frequencies
        self._scaling = float(getattr(module, f"{prefix}attention_scaling", 1.0))
        self.module, self.layer_type = module, layer_type
        self.interleaved, self.interleaved_angles = interleaved, interleaved_angles
        self.pairs = inverse_frequencies.numel()
        self.rotary_dim = 2 * self.pairs
        self._forward: Callable[..., tuple[Tensor, Tensor]] = module.forward
        self.follows_length = self.parameters.get("rope_type") in ("dynamic", "longrope")
        self.config = module.config
        if layer_type is not None:
            self.config = copy.copy(module.config)
            self.config.rope_parameters = self.parameters
        self._of_length: dict[int, Rotary] = {}
        self._of_parameters: dict[str, Rotary] = {}

    @property
    def parameters(self) -> dict[str, Any]:
        """The rope parameters in the model's config that these frequencies come from."""
        return rope_parameters(self.module.config, self.layer_type)

    def scaled(self, parameters: dict[str, Any], total: int) -> "Rotary":
        """Return the frequencies that the same rotary module has with other rope parameters.

        Args:
            parameters: As in a config's `rope_parameters`; merged into the model's.
            total: Tokens of the input, for parameters whose frequencies depend on it.

        Source:
            transformers.modeling_rope_utils; nothing is computed here.
        """
        asked = sorted(parameters.items()), total if parameters.get("rope_type") == "dynamic" else None
        if repr(asked) not in self._of_parameters:
            self._of_parameters = {repr(asked): self._scaled(parameters, total)}
        return self._of_parameters[repr(asked)]

    def _scaled(self, parameters: dict[str, Any], total: int) -> "Rotary":
        config = copy.deepcopy(self.module.config)
        assert not isinstance(config, Tensor | nn.Module)
        merged = {**self.parameters, **parameters}
        if self.layer_type is None:
            config.rope_parameters = merged
        else:
            config.rope_parameters = {**config.rope_parameters, self.layer_type: merged}
        if parameters.get("rope_type") == "dynamic":
            config.max_position_embeddings = parameters["original_max_position_embeddings"]
        return self._with(config, total)

    def for_kind(self, layer_type: str | None) -> "Rotary":
        """Return the same module's frequencies for another kind of layer."""
        return Rotary(self.module, self.dtype, layer_type, self.interleaved, self.interleaved_angles)

    def for_length(self, total: int) -> "Rotary":
        """Return the frequencies of an input of that many tokens, which rope types dynamic and longrope have.

        Source:
            transformers.modeling_rope_utils, which takes the longest row of the batch; here each row has its own.
        """
        if not self.follows_length:
            return self
        if self.parameters["rope_type"] == "longrope":
            # Two sets of frequencies: any length stands for all on its side of the original one.
            original = self.parameters["original_max_position_embeddings"]
            total = original + (total > original)
        if total not in self._of_length:
            self._of_length = {total: self._with(self.module.config, total)}
        return self._of_length[total]

    def _with(self, config: Any, total: int) -> "Rotary":
        """Return the frequencies of another config, fixed to those of an input of `total` tokens."""
        module: Any = type(self.module)(config)
        rope_type = rope_parameters(config, self.layer_type).get("rope_type", "default")
        if rope_type in ("dynamic", "longrope"):
            by_type = {} if self.layer_type is None else {"layer_type": self.layer_type}
            prefix = "" if self.layer_type is None else f"{self.layer_type}_"
            frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](config, None, seq_len=total, **by_type)
            setattr(module, f"{prefix}inv_freq", frequencies)
            setattr(module, f"{prefix}attention_scaling", factor)
            # Else its forward would replace them by what the largest position asks for.
            if self.layer_type is None:
                module.rope_type = "default"
            else:
                module.rope_type[self.layer_type] = "default"
        module.to(self.device)
        other = Rotary(module, self.dtype, self.layer_type, self.interleaved, self.interleaved_angles)
        other.follows_length = False
        return other

    def angles(self, position: Tensor, dtype: torch.dtype | None = None) -> Angles:
        """Return cosines and sines with RoPE's attention scaling, (batch or 1, len, rotary_dim)."""
        if position.ndim == 3:
            angle = position.to(self.device, torch.float32) * self._inverse_frequencies.float()
            tables = angle.cos() * self._scaling, angle.sin() * self._scaling
            return Angles(*(table.to(dtype or self.dtype).repeat(1, 1, 2) for table in tables))
        like = torch.empty(0, dtype=dtype or self.dtype, device=self.device)
        by_type = () if self.layer_type is None else (self.layer_type,)
        cos, sin = self._forward(like, position.to(self.device), *by_type)
        if self.interleaved_angles:
            cos, sin = (torch.cat([table[..., ::2], table[..., 1::2]], dim=-1) for table in (cos, sin))
        return Angles(cos, sin)

    def shift(self, distance: Tensor) -> Angles:
        """Return cosines and sines without RoPE's attention scaling, which a cached key has already."""
        cos, sin = self.angles(distance, torch.float32)
        return Angles(cos / self._scaling, sin / self._scaling)

    def enter(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states with rotated pairs half of rotary_dim apart."""
        return self._apart(query), self._apart(key), value

    def enter_cached(self, key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states with rotated pairs half of rotary_dim apart, at position 0 if angles follow the length."""
        key = self._apart(key)
        if self.follows_length:
            total = int(index[-1]) + 1 if len(index) else 0
            key = rotate(key.float(), self.for_length(total).shift(-index[None])).to(key.dtype)
        return key, value

    def _apart(self, states: Tensor) -> Tensor:
        if not self.interleaved:
            return states
        end = self.rotary_dim
        return torch.cat([states[..., :end:2], states[..., 1:end:2], states[..., end:]], dim=-1)


def rope_parameters(config: Any, layer_type: str | None = None) -> dict[str, Any]:
    """Return a config's rope parameters, those of one kind of layer if it has several sets.

    Args:
        config: A transformers config.
        layer_type: As in its `layer_types`; None where there is one set.
    """
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return parameters if layer_type is None else parameters[layer_type] or {}
