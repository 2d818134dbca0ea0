"""What a method is: published parameters, and which keys a query sees at which positions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from mesa_lm.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

    from mesa_lm.positions import Layout, Stair


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Base of all methods: the fields are the parameters, the methods below say where keys are scored.

    An instance is bound to a model by `resolve`; only a bound instance is executed.
    """

    name: ClassVar[str]

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

    def weave(self, kv_len: int, new: int, prompt_len: int, current: Stair | None) -> Stair | None:
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

    @property
    def longest_append(self) -> int | None:
        """Most tokens that one pass may append to cached ones; more are appended piece by piece; None: no bound."""
        return None

    def query_scale(self, index: Tensor) -> Tensor | None:
        """Return the factor of each query by its index, float32 in the shape of `index`; None is 1."""
        return None


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
    for value in (
        rope.get("original_max_position_embeddings"),
        getattr(config, "original_max_position_embeddings", None),
        getattr(config, "max_position_embeddings", None),
    ):
        if value:
            return int(value)
    raise MethodError(
        f"the config of model type {getattr(config, 'model_type', '?')!r} names no max_position_embeddings; "
        "give train_length="
    )
