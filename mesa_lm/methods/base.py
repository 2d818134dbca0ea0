"""What a method is: published parameters, and which keys a query sees at which positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mesa_lm.methods.parameters import bound_int, parameter, require_bool, require_int

if TYPE_CHECKING:
    from torch import Tensor

    from mesa_lm.methods.geometry import Band, Extent, Layout, Weave


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

    def longest_input(self, config: Any) -> float:
        """Return up to how many tokens the given parameters keep what was seen in training; infinite where always.

        Args:
            config: The model's transformers config.
        """
        return math.inf

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
    def depends_on_length(self) -> bool:
        """Whether what a token is given depends on how many tokens follow it.

        Where it does not, inputs that begin alike can share the keys and values of their beginning.
        """
        return not self.static_rope

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledMethod(Method):
    """A method that may scale queries beyond T, so that attention over more keys stays as sharp.

    Subclasses call `super(Class, self)`: `slots` makes dataclasses new classes, which a bare `super()` does not know.
    """

    train_length: int | None = parameter(None, "training length T in tokens; None: from the model's config")
    log_n: bool = parameter(True, "scale the query at index t by max(1, ln(t+1) / ln T)")

    def __post_init__(self) -> None:
        require_int(self, "train_length", 1, optional=True)
        require_bool(self, "log_n")

    def query_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """See `Method.query_scale`.

        Source:
            Su 2021, https://kexue.fm/archives/8823; rerope_patch.py and mesa_extrapolation.py of the released codes.
        """
        if not self.log_n:
            return None
        return ((index.float() + 1).log() / math.log(bound_int(self, "train_length"))).clamp(min=1)
