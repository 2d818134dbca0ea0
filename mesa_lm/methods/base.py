"""What a method is: published parameters, and which keys a query sees at which positions."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from typing_extensions import override

from mesa_lm.methods.parameters import check_parameters, declared, default_of, parameter
from mesa_lm.methods.train_length import train_length_of

if TYPE_CHECKING:
    from torch import Tensor

    from mesa_lm.methods.geometry import Band, Extent, Kept, Layout
    from mesa_lm.methods.weaves import Placement, Weave

logger = logging.getLogger(__name__)

# What a method changes: the frequencies of positions; where keys stand, of which every query sees all; a prompt's
# attention, cut into chunks that do not see one another; which keys are seen, by their place; or by the query.
Kind = Literal["baseline", "scaling", "remapping", "chunked", "sparse", "retrieval"]


class Reach(NamedTuple):
    """Positions that some parameters need, however short an input beyond them is.

    Attributes:
        parameters: The parameters, as name=value.
        positions: How many, in tokens.
    """

    parameters: str
    positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Base of all methods: the fields are the parameters, the methods below say where keys are scored.

    An instance is bound to a model by `bind`; only a bound instance is executed. What a subclass does not override
    describes full attention at true positions.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    places_pairs: ClassVar[bool] = False  # whether positions differ between the rotated pairs of a head's components

    def __post_init__(self) -> None:
        check_parameters(self)
        self.check_together()

    def check_together(self) -> None:
        """Refuse parameters that exclude one another; each by itself is checked by its declaration.

        Raises:
            MethodError: Some do.
        """

    def check_fit(self) -> None:
        """Refuse parameters of a bound method that do not fit its training length.

        Raises:
            MethodError: Some do not.
        """

    def check_pairs(self, pairs: int) -> None:
        """Refuse parameters of a bound method that do not fit so many rotated pairs of a head's components.

        Raises:
            MethodError: Some do not.
        """

    def reach(self) -> Reach | None:
        """Return the positions that a bound method's parameters need in any case, for a warning beyond T."""
        return None

    def bind(self, config: Any) -> Self:
        """Fill in the parameters that follow the model.

        Args:
            config: The model's transformers config.

        Returns:
            A copy whose parameters all have their values.

        Raises:
            MethodError: The parameters do not fit the model, or its config names no training length.
        """
        bound = self
        for name, declaration in declared(self).items():
            if declaration.rule is not None and getattr(self, name) is None:
                length = getattr(bound, "train_length", None) or train_length_of(config)
                bound = replace(bound, **{name: default_of(declaration, length, bound)})
        bound.check_fit()
        reach = bound.reach()
        if reach is not None:
            length = getattr(bound, "train_length", None) or train_length_of(config)
            if reach.positions > length:  # the published code runs such settings, so do we
                message = "%s: %s needs %d positions, but the model was trained on %d"
                logger.warning(message, self.name, reach.parameters, reach.positions, length)
        return bound

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

    def next_weave(self, kv_len: int, new: int, prompt_len: int, current: Placement | None) -> Placement | None:
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
    def kept(self) -> Kept | None:
        """Which cached tokens the bands of later tokens hold, so that all others may be dropped; None: all."""
        return None

    @property
    def is_calibrated(self) -> bool:
        """Whether some of the values were fitted to the model on data, and do not follow from T."""
        return False

    @property
    def rounds_merge(self) -> bool:
        """Whether a prompt's bands are merged with weights rounded to bfloat16, as a published code has it."""
        return False

    @property
    def longest_append(self) -> int | None:
        """Most tokens that one pass may append to cached ones; more are appended piece by piece; None: no bound."""
        return None

    def pieces(self, cached: int, new: int) -> list[int] | None:
        """Return the lengths of the pieces in which new tokens are run, each in a pass of its own.

        Args:
            cached: Tokens of the row in the cache.
            new: Number of new tokens.

        Returns:
            Lengths that make up `new`; None where it is all the same.
        """
        return None

    @property
    def is_noisy(self) -> bool:
        """Whether its bands have noise."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether a token leaves more behind in the cache than its key and value, from a row's first token on."""
        return False

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

    @property
    def cuts_prompts(self) -> bool:
        """Whether the method cuts prompts into chunks, so that several processes can share one."""
        return type(self).layout is not Method.layout

    @property
    def static_rope(self) -> bool:
        """Whether exchanging the model's frequencies is all there is to do, for every input alike."""
        return False

    @property
    def scales_frequencies(self) -> bool:
        """Whether the model's rotary frequencies are exchanged for those of `rope_parameters`."""
        return type(self).rope_parameters is not Method.rope_parameters

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

    def selected_by_heads(self, layer: int) -> tuple[tuple[int, ...], ...]:
        """Return for each head of a layer which rotated pairs it has at a band's positions, not at its `others`."""
        raise NotImplementedError

    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        """Return the positions at which a method with bands stores its keys; most of its bands score them there.

        Like those of its bands, they are (len,) or (len, pairs).
        """
        return index

    def query_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return the factor of each query, float32 in the shape of `index`; None is 1."""
        return None

    def key_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return the factor with which each key is stored, float32; None is 1."""
        return None

    def options(self) -> dict[str, Any]:
        """Return the parameters that have a value, by name."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedMethod(Method):
    """A method that goes by the training length, the model's own or a given one."""

    train_length: int = parameter(lambda T: T, "training length T in tokens", shown="T", at_least=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledMethod(TrainedMethod):
    """A method that may scale queries beyond T, so that attention over more keys stays as sharp."""

    log_n: bool = parameter(True, "scale the query at index t by max(1, ln(t+1) / ln T)")

    @override
    def query_scale(self, index: Tensor, extent: Extent) -> Tensor | None:
        """Return log-n scaling, if it is on.

        Source:
            Su 2021, https://kexue.fm/archives/8823; rerope_patch.py and mesa_extrapolation.py of the released codes.
        """
        if not self.log_n:
            return None
        return ((index.float() + 1).log() / math.log(self.train_length)).clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpenedMethod(ScaledMethod):
    """A method that makes attention sharper at every length, as YaRN does for models stretched to 2 T."""

    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T)")
    rope_scale: float = parameter(
        0.1 * math.log(2) + 1,
        "factor of cos and sin, at every length",
        shown="0.1 ln 2 + 1",
        at_least=0.01,
        at_most=100,
    )

    @override
    def query_scale(self, index: Tensor, extent: Extent) -> Tensor:
        """Return the square of `rope_scale`, which queries and keys have alike, times log-n scaling."""
        log_n = ScaledMethod.query_scale(self, index, extent)
        return (index.float() * 0 + 1 if log_n is None else log_n) * self.rope_scale**2


@dataclass(frozen=True, slots=True, kw_only=True)
class WovenMethod(ScaledMethod):
    """A weave over full attention: near keys at their true distances, far ones where the weave puts them."""

    def weave(self, prompt_len: int) -> Weave:
        """Return the weave of an input.

        Args:
            prompt_len: Tokens of its prompt.
        """
        raise NotImplementedError

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        longest = self.weave(kv_len).true_length
        return kv_len <= (min(longest, self.train_length) if self.log_n else longest)

    @override
    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        return self.weave(extent.prompt).bands(index)

    @override
    def stored_at(self, index: Tensor, extent: Extent) -> Tensor:
        return self.weave(extent.prompt).stored_at(index)
