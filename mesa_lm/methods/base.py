"""What a method is: published parameters, and which keys a query sees at which positions."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mesa_lm.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

    from mesa_lm.positions import Band, Extent, Layout, Weave

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Base of all methods: the fields are the parameters, the methods below say where keys are scored.

    An instance is bound to a model by `resolve`; only a bound instance is executed.
    """

    name: ClassVar[str]
    block_len: ClassVar[int] = 2048  # queries whose bands are computed at once
    static_rope: ClassVar[bool] = False  # whether `rope_parameters` are the same for every input

    def resolve(self, config: Any) -> Self:
        """Fill in what depends on the model.

        Args:
            config: The model's transformers config.

        Returns:
            A copy whose parameters are all concrete.

        Raises:
            MethodError: The parameters do not fit the model.
        """
        return self

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """Tell whether the untouched model gives this method's result.

        Args:
            kv_len: Number of keys that the last query sees.
            cached: Whether some of them come from a cache.
        """
        return True

    def layout(self, prompt_len: int) -> Layout | None:
        """Return how a prompt is cut into chunks, None for one dense pass."""
        return None

    def next_weave(self, kv_len: int, new: int, prompt_len: int, current: Weave | None) -> Weave | None:
        """Return the key positions to use for a pass that appends tokens to a row.

        Args:
            kv_len: Keys of the row including the new ones.
            new: Number of new tokens.
            prompt_len: Length of the row's prompt.
            current: The positions at which the cached keys are stored; None is linear.

        Returns:
            The positions to move them to; None is linear.
        """
        return None

    def evicted(self, cached: int, new: int) -> range:
        """Return the cached tokens of a row that are dropped before a pass appends new ones; the others close up.

        Args:
            cached: Tokens in the cache.
            new: Number of new tokens.
        """
        return range(0)

    @property
    def rounds_merge(self) -> bool:
        """Whether a prompt's bands are merged with weights rounded to bfloat16, as a published code has it."""
        return False

    @property
    def longest_append(self) -> int | None:
        """Most tokens that one pass may append to cached ones; more are appended piece by piece; None: no bound."""
        return None

    @property
    def has_bands(self) -> bool:
        """Whether the method is executed by its `bands`."""
        return type(self).bands is not Method.bands

    def rope_parameters(self, config: Any, total: int) -> dict[str, Any] | None:
        """Return the rope parameters to run with, merged into those of the model; None: the model's own.

        Args:
            config: The model's transformers config.
            total: Tokens of the input; see `Extent`.
        """
        return None

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...] | None:
        """Return what some queries see, as bands that share no key; every query sees at least itself.

        Args:
            index: (q_len,) consecutive indices of the queries.
            extent: Of the input that they belong to.

        Returns:
            The bands; None where every query sees all keys before it, at the positions given by `next_weave`.
        """
        return None

    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return the positions at which a method with bands stores its keys; most of its bands score them there."""
        return index

    def query_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return the factor of each query, float32 in the shape of `index`; None is 1."""
        return None

    def key_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return the factor with which each key is stored, float32; None is 1."""
        return None


def log_n_scale(index: Tensor, train_length: int) -> Tensor:
    """Return max(1, ln(index + 1) / ln T): entropy-invariant scaling of a query that sees index + 1 keys.

    Args:
        index: Indices of the queries.
        train_length: T in tokens.

    Source:
        Su 2021, https://kexue.fm/archives/8823; rerope_patch.py and mesa_extrapolation.py of the released codes.
    """
    return ((index.float() + 1).log() / math.log(train_length)).clamp(min=1)


def parameter(default: Any, text: str) -> Any:
    """Declare a parameter of a method: its default and what it means."""
    return field(default=default, metadata={"help": text})


def require_int(method: Method, name: str, minimum: int, optional: bool = False) -> None:
    """Check that a parameter is an integer of at least `minimum` (or None if optional).

    Raises:
        MethodError: It is not.
    """
    value = getattr(method, name)
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        default = next(field.default for field in fields(method) if field.name == name)
        raise MethodError(
            f"{method.name}: {name} must be an integer of at least {minimum}, found {value!r}; "
            f"leave it out to use {'a value from the model' if default is None else default}"
        )


def train_length_of(config: Any) -> int:
    """Return the training length of a model in tokens.

    The rope parameters' or the config's `original_max_position_embeddings` come first: a model that was stretched
    with YaRN or a similar scaling names there what it was trained with.

    Raises:
        MethodError: The config names no length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope  # some models have one set for each kind of layer
    named = ("original_max_position_embeddings", "max_position_embeddings", "max_seq_len", "seq_length")
    for value in (rope.get(named[0]), *(getattr(config, name, None) for name in named)):
        if value:
            return int(value)
    raise MethodError(
        f"the config of model type {getattr(config, 'model_type', '?')!r} names none of {', '.join(named)}; "
        "give train_length="
    )


def require_bool(method: Method, name: str) -> None:
    """Check that a parameter is true or false.

    Raises:
        MethodError: It is not.
    """
    value = getattr(method, name)
    if not isinstance(value, bool):
        raise MethodError(f"{method.name}: {name} must be true or false, found {value!r}")


def bound_int(method: Method, name: str) -> int:
    """Return an integer parameter that `Method.resolve` has filled in."""
    value = getattr(method, name)
    assert isinstance(value, int), f"{name} is filled in by resolve()"
    return value


def default_window(train_length: int) -> int:
    """Return the published window of 512 tokens, a quarter of T where that is less, at least 1."""
    return max(1, min(512, train_length // 4))


def warn_if_beyond(method: Method, what: str, positions: int, train_length: int) -> None:
    """Warn where a setting lets distances reach beyond training; the published code runs such settings, so do we.

    Args:
        method: The method.
        what: The parameters that lead there.
        positions: Positions that they need, in tokens.
        train_length: T in tokens.
    """
    if positions > train_length:
        logger.warning(
            "%s: %s needs %d positions, but the model was trained on %d", method.name, what, positions, train_length
        )
