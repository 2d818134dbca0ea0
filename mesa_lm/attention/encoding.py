"""What position encodings have in common: one linear map, and the states of a layer in the layout that it expects."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Extent


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
    return rotate_unrounded(states, angles).to(states.dtype)


def rotate_unrounded(states: Tensor, angles: Angles) -> Tensor:
    """Do what `rotate` does, but leave the result in the wider dtype of states and angles; who stores it rounds it."""
    cos, sin = angles.cos.to(states.device).unsqueeze(1), angles.sin.to(states.device).unsqueeze(1)
    rotary_dim = cos.shape[-1]
    half = rotary_dim // 2
    first, second = states[..., :half], states[..., half:rotary_dim]
    shape = torch.broadcast_shapes(states.shape[:-1], cos.shape[:-1])
    rotated = states.new_empty(*shape, states.shape[-1], dtype=torch.promote_types(states.dtype, cos.dtype))
    # Written in place: the temporaries of a product per term took longer than the arithmetic.
    torch.mul(first, cos[..., :half], out=rotated[..., :half]).addcmul_(second, sin[..., :half], value=-1)
    torch.mul(second, cos[..., half:], out=rotated[..., half:rotary_dim]).addcmul_(first, sin[..., half:])
    if rotary_dim < states.shape[-1]:
        rotated[..., rotary_dim:] = states[..., rotary_dim:]
    return rotated


def multiply(states: Tensor, factor: Tensor | float, spared: int) -> Tensor:
    """Multiply queries or keys, but not their first components.

    Args:
        states: (batch, heads, len, head_dim).
        factor: A number, or what broadcasts against the states with one component last.
        spared: Number of first components that are left as they are; see `Encoding`.
    """
    if isinstance(factor, Tensor):
        factor = factor.to(states.device)
    if not spared:
        return (states * factor).to(states.dtype)
    return torch.cat([states[..., :spared], (states[..., spared:] * factor).to(states.dtype)], dim=-1)


class Encoding:
    """A position encoding of some layers; this one is none at all: queries and keys have no positions.

    Attributes:
        device: Where angles are computed.
        dtype: Of the queries and keys that are rotated.
        spared: First components of entered states that a method's query scaling leaves as they are.
        pairs: Pairs of components that are rotated.
        follows_length: Whether the angles of a position depend on the input's length; `for_length` has them. Keys are
            then cached at position 0 and re-rotated at each use.
        config: What a method's `rope_parameters` is asked with.
    """

    spared = pairs = 0

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.follows_length = False
        self.config: Any = None

    def angles(self, position: Tensor, dtype: torch.dtype | None = None) -> Angles:
        """Return the angles that bring an entered query or key to its position.

        Args:
            position: (batch or 1, len) or, pair by pair, (batch or 1, len, pairs) integers or fractions.
            dtype: Of the angles; None is the model's, as its own layers use.
        """
        nothing = torch.empty(*position.shape, 0, dtype=dtype or self.dtype, device=self.device)
        return Angles(nothing, nothing)

    def shift(self, distance: Tensor) -> Angles:
        """Return the angles that move a key from one position to another, in float32.

        Args:
            distance: New position minus old position, in the shape of positions.
        """
        return self.angles(distance, torch.float32)

    def interpolated_shift(self, distance: Tensor) -> Angles:
        """Return as `shift` what moves a key to where its scores lie between those at the whole distances beside it.

        Scores are linear in cosines and sines, so it is their mean, weighted by nearness.
        """
        low, high = self.shift(distance.floor()), self.shift(distance.ceil())
        weight = (distance - distance.floor()).to(low.cos)[..., None]
        return Angles(torch.lerp(low.cos, high.cos, weight), torch.lerp(low.sin, high.sin, weight))

    def for_input(self, method: Method, extent: Extent) -> Encoding:
        """Return the encoding with which a method runs an input.

        Args:
            method: Bound to the model.
            extent: Of the input.
        """
        parameters = None if method.static_rope else method.rope_parameters(self.config, extent.total)
        return self.for_length(extent.total) if parameters is None else self.scaled(parameters, extent.total)

    def for_length(self, total: int) -> Encoding:
        """Return the encoding of an input of that many tokens."""
        return self

    def scaled(self, parameters: dict[str, Any], total: int) -> Encoding:
        """Return the encoding with other rope parameters, for an input of that many tokens."""
        return self

    def enter(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Bring a layer's states, (batch, heads, len, head_dim), into the layout that `rotate` expects.

        Args:
            query: As the model's layer has it, without positions.
            key: Likewise.
            value: Likewise.
            scale: Factor of the scores.
        """
        return query, key, value

    def enter_cached(self, key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Bring keys and values that the untouched model has cached into the layout of `WovenCache`.

        Args:
            key: (batch, num_kv_heads, len, head_dim), at the positions `index`.
            value: Like key.
            index: (len,) integers.
        """
        return key, value

    def leave(self, output: Tensor, value: Tensor) -> Tensor:
        """Return attention's output in the layout of the layer's own values.

        Args:
            output: (batch, num_heads, q_len, head_dim as entered).
            value: The values as the layer gave them.
        """
        return output
