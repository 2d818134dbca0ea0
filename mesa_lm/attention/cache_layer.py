"""How transformers meets our cache: as the one layer of a cache of its own, be it the caller's or a new one."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from mesa_lm.attention.cache import WovenCache
from mesa_lm.errors import ModelError, UsageError
from mesa_lm.methods.base import Method

# The method whose frequencies the model has that runs now, None for its own.
_frequencies: ContextVar[Method | None] = ContextVar("frequencies", default=None)


class WovenLayer(CacheLayerMixin):
    """Keys and values of all layers of an extrapolated model, as a transformers cache has them.

    A cache that a caller made keeps its identity when a method fills it: this takes the place of its layers.

    Attributes:
        woven: The keys and values.
        method: What they were made under, bound to the model.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, woven: WovenCache, method: Method) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.woven, self.method = woven, method
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Return the padded input columns consumed so far."""
        return self.woven.columns

    def get_max_length(self) -> int:
        """Return that there is no longest input, which transformers writes as -1."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the columns that a mask covers, and that it begins with the first one."""
        return self.woven.columns + query_length, 0

    def reset(self) -> None:
        """Forget all tokens."""
        self.woven = WovenCache(0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make row i a copy of row beam_idx[i]."""
        self.woven.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows with these indices, in this order, repetitions allowed."""
        self.woven.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        self.woven.select(torch.arange(len(self.woven.rows)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row, see `WovenCache.crop`."""
        self.woven.crop(tokens_to_remove)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: it is made with its content."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse: only the method's own passes write here, so the untouched model must not be given this cache."""
        raise _foreign(self.method)


def woven_layer(cache: Cache | None) -> WovenLayer | None:
    """Return the content of a cache that a method has filled, None where none has."""
    layer = cache.layers[0] if cache is not None and cache.layers else None
    return layer if isinstance(layer, WovenLayer) else None


def given_cache(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    """Return the cache among the arguments of a model's forward, None if there is none."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)


@contextmanager
def frequencies_of(method: Method) -> Iterator[None]:
    """Note, while the model runs, that it has the frequencies of a method."""
    token = _frequencies.set(method)
    try:
        yield
    finally:
        _frequencies.reset(token)


def note_frequencies(cache: Cache, method: Method) -> None:
    """Note on a cache that the model filled it with the frequencies of a method; no others go on with it."""
    if getattr(cache, "mesa_method", None) != method:
        cache.mesa_method = method  # type: ignore[attr-defined]
        cache.update = MethodType(_update_checked, cache)  # type: ignore[method-assign]


def _update_checked(
    cache: Cache, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Stand in for `Cache.update`: also a model whose method was removed must not go on."""
    if not torch.compiler.is_compiling() and cache.get_seq_length(layer_idx) > 0:
        method: Method = cache.mesa_method  # type: ignore[attr-defined]
        if _frequencies.get() != method:
            raise _foreign(method)
    updated: tuple[Tensor, Tensor] = type(cache).update(cache, key_states, value_states, layer_idx, *args, **kwargs)
    return updated


def _foreign(method: Method) -> UsageError:
    """Return the error for a cache of a method that the untouched model is given."""
    return UsageError(
        f"this cache was filled under method {method.name!r} and is of use to it alone; attach the method again, or "
        "begin with a new cache"
    )


def check_cache(cache: Cache | None, method: Method) -> None:
    """Refuse a cache that was filled under another method than the one that runs, or under other parameters.

    Args:
        cache: Given to the model.
        method: Bound to the model.

    Raises:
        ModelError: It was.
    """
    if cache is None:
        return
    layer = woven_layer(cache)
    before: Method | None = getattr(cache, "mesa_method", None) if layer is None else layer.method
    if before == method or (before is None and not method.static_rope) or cache.get_seq_length() == 0:
        return
    if before is None:
        found = f"without method {method.name!r}, at other frequencies"
    elif before.name != method.name:
        found = f"under method {before.name!r}, and now {method.name!r} runs"
    else:
        names = [one.name for one in fields(method) if getattr(before, one.name) != getattr(method, one.name)]
        values = ", ".join(f"{name}={getattr(before, name)}, now {getattr(method, name)}" for name in names)
        found = f"under method {method.name!r} with other parameters ({values})"
    raise ModelError(f"the cache was filled {found}; begin with a new cache")


def filled(cache: Cache | None, woven: WovenCache, method: Method) -> Cache:
    """Return a transformers cache with the given content: the caller's own one, or a new one.

    Args:
        cache: The caller's; None if there is none.
        woven: What it is to hold, and nothing else.
        method: What that was made under.
    """
    layer = WovenLayer(woven, method)
    if cache is None:
        return Cache(layers=[layer])
    cache.layers = [layer]
    return cache
