"""Rotating queries and keys to the positions at which a method scores them."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class Angles(NamedTuple):
    """Cosines and sines of one or more sequences of positions, each (batch or 1, len, rotary_dim)."""

    cos: Tensor
    sin: Tensor


def rotate(states: Tensor, angles: Angles) -> Tensor:
    """Rotate queries or keys.

    Args:
        states: (batch, heads, len, head_dim); only the first rotary_dim components are rotated, component m with
            component m + rotary_dim / 2.
        angles: For every position along `len`.

    Returns:
        A new tensor of the same shape and dtype.

    Source:
        RoFormer, arXiv 2104.09864, equation 34, in the half-split layout of GPT-NeoX and Llama.
    """
    cos, sin = angles.cos.to(states.device).unsqueeze(1), angles.sin.to(states.device).unsqueeze(1)
    rotary_dim = cos.shape[-1]
    half = rotary_dim // 2
    first, second = states[..., :half], states[..., half:rotary_dim]
    rotated = [
        first * cos[..., :half] - second * sin[..., :half],
        second * cos[..., half:] + first * sin[..., half:],
    ]
    if rotary_dim < states.shape[-1]:
        rotated.append(states[..., rotary_dim:])
    return torch.cat(rotated, dim=-1).to(states.dtype)


class Rotary:
    """The model's own rotary frequencies, asked for angles at any integer positions.

    The model's rotary module is called, so that every static RoPE scaling it implements holds here as well, and angles
    are float32 products of position and inverse frequency, as everywhere in transformers.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Wrap a rotary module.

        Args:
            module: Called with (states, position_ids), returns cosines and sines in the states' dtype.
            dtype: Of the model's queries and keys.
        """
        self.module, self.dtype = module, dtype
        self._forward: Callable[..., tuple[Tensor, Tensor]] = module.forward
        inverse_frequencies = module.inv_freq
        assert isinstance(inverse_frequencies, Tensor)
        self.device = inverse_frequencies.device

    def scaled(self, parameters: dict[str, Any], total: int) -> "Rotary":
        """Return the frequencies that the same rotary module has with other rope parameters.

        Args:
            parameters: As in a config's `rope_parameters`; merged into the model's.
            total: Tokens of the input, for parameters whose frequencies depend on it.

        Source:
            transformers.modeling_rope_utils; nothing is computed here.
        """
        config = copy.deepcopy(self.module.config)
        assert not isinstance(config, Tensor | nn.Module)
        config.rope_parameters = {**config.rope_parameters, **parameters}
        module = type(self.module)(config)
        if parameters["rope_type"] == "dynamic":
            config.max_position_embeddings = parameters["original_max_position_embeddings"]
            inverse_frequencies, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, None, seq_len=total)
            module.inv_freq = inverse_frequencies
            # Else its forward would replace them by what the largest position asks for.
            module.rope_type = "default"
        return Rotary(module.to(self.device), self.dtype)

    def angles(self, position: Tensor, dtype: torch.dtype | None = None) -> Angles:
        """Return the angles that rotate an unrotated query or key to its position.

        Args:
            position: (batch or 1, len) integers.
            dtype: Of cosines and sines; None is the model's, as its own layers use.
        """
        like = torch.empty(0, dtype=dtype or self.dtype, device=self.device)
        return Angles(*self._forward(like, position.to(self.device)))

    def shift(self, distance: Tensor) -> Angles:
        """Return the angles that move a rotated key by a distance: float32, without RoPE's attention scaling.

        Args:
            distance: (batch or 1, len) integers, new position minus old position.
        """
        scaling = float(getattr(self.module, "attention_scaling", 1.0))
        cos, sin = self.angles(distance, torch.float32)
        return Angles(cos / scaling, sin / scaling)
