"""Position encodings: bringing queries and keys to the positions at which a method scores them.

All encodings share one linear map, `rotate`. An encoding says with which angles, and how a layer's states enter the
layout that `rotate` expects; what leaves attention is put back.
"""

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
    shape = torch.broadcast_shapes(states.shape[:-1], cos.shape[:-1])
    rotated = states.new_empty(*shape, states.shape[-1], dtype=torch.promote_types(states.dtype, cos.dtype))
    # Written in place: the temporaries of a product per term took longer than the arithmetic.
    torch.mul(first, cos[..., :half], out=rotated[..., :half]).addcmul_(second, sin[..., :half], value=-1)
    torch.mul(second, cos[..., half:], out=rotated[..., half:rotary_dim]).addcmul_(first, sin[..., half:])
    if rotary_dim < states.shape[-1]:
        rotated[..., rotary_dim:] = states[..., rotary_dim:]
    return rotated.to(states.dtype)


def multiply(states: Tensor, factor: Tensor, spared: int) -> Tensor:
    """Multiply queries or keys, but not their first components.

    Args:
        states: (batch, heads, len, head_dim).
        factor: Broadcasts against it, with one component last.
        spared: Number of first components that are left as they are; see `Encoding`.
    """
    factor = factor.to(states.device)
    if not spared:
        return states * factor
    return torch.cat([states[..., :spared], states[..., spared:] * factor], dim=-1)


class Encoding:
    """A position encoding of some layers; this one is none at all: queries and keys have no positions.

    Attributes:
        device: Where angles are computed.
        dtype: Of the queries and keys that are rotated.
        spared: First components of entered states that a method's query scaling leaves as they are.
        follows_length: Whether the angles of a position depend on the input's length; `for_length` has them. Keys are
            then cached at position 0 and moved whenever they are scored.
        config: What a method's `rope_parameters` is asked with.
    """

    spared = 0

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.follows_length = False
        self.config: Any = None

    def angles(self, position: Tensor, dtype: torch.dtype | None = None) -> Angles:
        """Return the angles that bring an entered query or key to its position.

        Args:
            position: (batch or 1, len) integers or fractions.
            dtype: Of the angles; None is the model's, as its own layers use.
        """
        nothing = torch.empty(*position.shape, 0, dtype=dtype or self.dtype, device=self.device)
        return Angles(nothing, nothing)

    def shift(self, distance: Tensor) -> Angles:
        """Return the angles that move a key from one position to another, in float32.

        Args:
            distance: (batch or 1, len) new position minus old position.
        """
        return self.angles(distance, torch.float32)

    def for_length(self, total: int) -> "Encoding":
        """Return the encoding of an input of that many tokens."""
        return self

    def scaled(self, parameters: dict[str, Any], total: int) -> "Encoding":
        """Return the encoding with other rope parameters; see `Rotary.scaled`."""
        return self

    def enter(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
        """Bring a layer's states, (batch, heads, len, head_dim), into the layout that `rotate` expects.

        Args:
            query: As the model's layer has it, without positions.
            key: Likewise.
            value: Likewise.
            scaling: Factor of the scores.
        """
        return query, key, value

    def enter_cached(self, key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Bring keys and values that the untouched model has cached into the layout of this engine's cache.

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
        name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
        inverse_frequencies = getattr(module, name)
        assert isinstance(inverse_frequencies, Tensor)
        super().__init__(inverse_frequencies.device, dtype)
        self.module, self.layer_type = module, layer_type
        self.interleaved, self.interleaved_angles = interleaved, interleaved_angles
        self.rotary_dim = 2 * inverse_frequencies.numel()
        self._forward: Callable[..., tuple[Tensor, Tensor]] = module.forward
        self.follows_length = self.parameters.get("rope_type") in ("dynamic", "longrope")
        self.config = module.config
        if layer_type is not None:
            self.config = copy.copy(module.config)
            self.config.rope_parameters = self.parameters
        self._of_length: dict[int, Rotary] = {}

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
        """See `Encoding.for_length`: rope types dynamic and longrope, for the row's own length.

        Source:
            transformers.modeling_rope_utils, which takes the longest row of the batch instead.
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
        """See `Encoding.angles`: cosines and sines, with RoPE's attention scaling."""
        like = torch.empty(0, dtype=dtype or self.dtype, device=self.device)
        by_type = () if self.layer_type is None else (self.layer_type,)
        cos, sin = self._forward(like, position.to(self.device), *by_type)
        if self.interleaved_angles:
            cos, sin = (torch.cat([table[..., ::2], table[..., 1::2]], dim=-1) for table in (cos, sin))
        return Angles(cos, sin)

    def shift(self, distance: Tensor) -> Angles:
        """See `Encoding.shift`: without RoPE's attention scaling, which a cached key has already."""
        name = "attention_scaling" if self.layer_type is None else f"{self.layer_type}_attention_scaling"
        scaling = float(getattr(self.module, name, 1.0))
        cos, sin = self.angles(distance, torch.float32)
        return Angles(cos / scaling, sin / scaling)

    def enter(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
        """See `Encoding.enter`: rotated pairs half of rotary_dim apart."""
        return self._apart(query), self._apart(key), value

    def enter_cached(self, key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoding.enter_cached`."""
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
