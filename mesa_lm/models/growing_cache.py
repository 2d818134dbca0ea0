"""Room to grow in transformers' own cache, which otherwise copies all keys and values for every decoded token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from mesa_lm.errors import ModelError
from mesa_lm.models.families import FAMILIES

_ALIGNMENT = 16  # bytes: keys of a multiple of it lie in a view as well aligned as in a copy


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that appends in place.

    A prompt's keys and values are kept as they come; with the first token after it they become views of buffers an
    eighth larger than needed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; see `DynamicLayer.update`.

        Args:
            key_states: (batch, num_kv_heads, new, head_dim).
            value_states: Like key_states.
            *args: As `DynamicLayer.update` has them.
            **kwargs: Likewise.

        Returns:
            All keys and values.
        """
        # What is written in place has no gradient, and is no part of a graph; and at an odd alignment kernels may add
        # up in another order.
        aligned = key_states.shape[-1] * key_states.element_size() % _ALIGNMENT == 0
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not aligned:
            kept: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return kept
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys = self._appended("keys", self.keys, key_states)
        self.values = self._appended("values", self.values, value_states)
        return self.keys, self.values

    def _appended(self, name: str, held: Tensor, new: Tensor) -> Tensor:
        past = held.shape[-2] if held.numel() else 0
        if not past and new.untyped_storage().nbytes() == new.nbytes:
            return new  # copied when a token follows; a view of more than itself would keep that alive
        length = past + new.shape[-2]
        buffer = self._buffers.get(name)
        # Whoever selects or repeats sequences puts new tensors in the place of the views.
        is_view = buffer is not None and held.data_ptr() == buffer.data_ptr() and held.stride() == buffer.stride()
        if buffer is None or not is_view or buffer.shape[-2] < length:
            buffer = new.new_empty(*new.shape[:-2], length + max(64, length // 8), new.shape[-1])
            if past:
                buffer[..., :past, :] = held
            self._buffers[name] = buffer
        buffer[..., past:length, :] = new
        return buffer[..., :length, :]


def let_grow(cache: object) -> None:
    """Let an empty cache append in place, if it is transformers' plain one; anything else is left as it is.

    Args:
        cache: What is given to the model; its layers that hold all tokens are exchanged.
    """
    if type(cache) is not DynamicCache or cache.offloading or cache.get_seq_length() > 0:
        return
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer


def with_growing_cache(forward: Callable[..., Any], model: PreTrainedModel) -> Callable[..., Any]:
    """Return a model's forward such that its cache appends in place; where it has gradients, it is left as it is.

    Args:
        forward: Of the model.
        model: The model.

    Raises, when called:
        ModelError: The call's mask has tokens of a cache that is not there.
    """
    family = FAMILIES.get(model.config.model_type)
    makes_cache = family is not None and not family.is_remote_code

    def grow(*args: Any, **kwargs: Any) -> Any:
        _check_mask(args, kwargs)
        # A cache is hardly ever given by position.
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and len(args) <= 1:
            use_cache = kwargs.get("use_cache")
            use_cache = getattr(model.config, "use_cache", False) if use_cache is None else use_cache
            if use_cache and kwargs.get("past_key_values") is None and makes_cache:
                kwargs["past_key_values"] = DynamicCache(config=model.config)  # as these models do themselves
            let_grow(kwargs.get("past_key_values"))
        return forward(*args, **kwargs)

    return grow


def _check_mask(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a call whose mask covers more than its tokens though it has no cache: what it stands on is lost."""
    mask, tokens = kwargs.get("attention_mask"), args[0] if args else kwargs.get("input_ids")
    tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
    if kwargs.get("past_key_values") is not None or not isinstance(mask, Tensor) or not isinstance(tokens, Tensor):
        return
    if mask.ndim == 2 and mask.shape[1] > tokens.shape[1]:
        raise ModelError(
            f"attention_mask has {mask.shape[1]} columns for {tokens.shape[1]} tokens without a cache; generate() of "
            "transformers before 5.20 loses Phi-3's when it passes the training length: use 5.20 or newer, or "
            "use_cache=False"
        )
