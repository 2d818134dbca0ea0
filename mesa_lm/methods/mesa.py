"""Mesa-Extrapolation: chunk-based triangular attention with Stair PE in the last chunk and in decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import ScaledMethod
from mesa_lm.methods.geometry import Clamped, Grouped, Layout, Leaky, Stair, Weave, dynamic_split
from mesa_lm.methods.parameters import bound_int, parameter, require_choice, require_int, train_length_of

PUBLISHED_WIDTH = 50
# The released code computes no chunk width for prompts that fit and keeps this initial one.
RELEASED_INITIAL_WIDTH = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesa(ScaledMethod):
    """Prefill in chunks that see the first chunk and themselves; weave key positions for the last chunk.

    Parameters left at None follow the model's training length T by rules that give the published constants from
    T = 2048 on. Key j of a prompt of I tokens is scored at position (I-1) - W(I-1-j); queries keep their index.

    Source: Mesa-Extrapolation, NeurIPS 2024, arXiv 2410.15859; variant "released": the authors' code, which differs.
    """

    name: ClassVar[str] = "mesa"

    first_chunk: int | None = parameter(None, "first chunk F that every chunk sees; None: min(100, T/20)")
    last_chunk: int | None = parameter(None, "shortest last chunk L; None: min(512, T/4)")
    chunk_width: int | None = parameter(None, "width of the middle chunks; None: DynamicSplit, at most T - F")
    split_margin: int | None = parameter(
        None, "tokens the last chunk may take above L, M_max; None: min(200, T/10), released 200"
    )
    reserve: int = parameter(0, "weave a growing context this many tokens before T; the released code has 50")
    extrapolated_position: int | None = parameter(
        None, "distance N up to which positions stay linear; None: min(512, 2T/5); not in variant released"
    )
    extrapolated_width: int | Literal["auto"] = parameter(
        "auto", "keys per position step E beyond N; auto: 50, or the smallest width that keeps positions inside T"
    )
    reweave_every: int | None = parameter(
        None, "decoded tokens between two computations of the key positions; None: last_chunk; not in variant released"
    )
    weave: Literal["stair", "rerope", "leaky_rerope", "self_extend"] = parameter(
        "stair", "key positions beyond N in the last chunk and in decoding; not in variant released"
    )
    variant: Literal["paper", "released"] = parameter("paper", "the paper's definition or the authors' code")
    first_chunk_cache: int | None = parameter(
        None, "tokens that the released code keeps free beside the first chunk; None: first_chunk; only released"
    )

    def __post_init__(self) -> None:
        super(Mesa, self).__post_init__()
        for name in ("first_chunk", "last_chunk", "chunk_width", "split_margin", "reweave_every"):
            require_int(self, name, 1, optional=True)
        for name in ("extrapolated_position", "first_chunk_cache"):
            require_int(self, name, 0, optional=True)
        require_int(self, "reserve", 0)
        if self.extrapolated_width != "auto":
            require_int(self, "extrapolated_width", 1)
        require_choice(self, "variant", ("paper", "released"))
        require_choice(self, "weave", ("stair", "rerope", "leaky_rerope", "self_extend"))
        if self._released and self.weave != "stair":
            raise MethodError(f"mesa: weave must be 'stair' in variant 'released', found {self.weave!r}")
        if self.weave == "rerope" and self.extrapolated_width != "auto":
            raise MethodError(
                f"mesa: weave 'rerope' has no extrapolated_width, found {self.extrapolated_width!r}; leave it out"
            )
        foreign = ("extrapolated_position", "reweave_every") if self._released else ("first_chunk_cache",)
        for name in foreign:
            if getattr(self, name) is not None:
                found = getattr(self, name)
                raise MethodError(
                    f"mesa: {name} has no meaning in variant {self.variant!r}, found {found!r}; leave it out"
                )

    @property
    def _released(self) -> bool:
        return self.variant == "released"

    def resolve(self, config: Any) -> Self:
        """Fill in the parameters that depend on T; see `Method.resolve`."""
        train_length = self.train_length or train_length_of(config)
        first = _default(self.first_chunk, max(1, min(100, train_length // 20)))
        last = _default(self.last_chunk, max(1, min(512, train_length // 4)))
        # Farther than the last chunk is long, where T allows, so that its first queries have some linear context.
        near = max(1, min(512, 2 * train_length // 5))
        margin = 200 if self._released else max(1, min(200, train_length // 10))
        resolved = replace(
            self,
            train_length=train_length,
            first_chunk=first,
            last_chunk=last,
            split_margin=_default(self.split_margin, margin),
            extrapolated_position=None if self._released else _default(self.extrapolated_position, near),
            reweave_every=None if self._released else _default(self.reweave_every, last),
            first_chunk_cache=_default(self.first_chunk_cache, first) if self._released else None,
        )
        resolved._check_fit()
        return resolved

    def _check_fit(self) -> None:
        length = bound_int(self, "train_length")
        first, last = bound_int(self, "first_chunk"), bound_int(self, "last_chunk")
        kept_free = first + (self.first_chunk_cache or 0)
        if kept_free >= length:
            raise MethodError(
                f"mesa: first_chunk (with first_chunk_cache) must leave room in train_length={length}, "
                f"found {kept_free}; it may be at most {length - 1}"
            )
        if self.reserve >= length:
            raise MethodError(f"mesa: reserve must be below train_length={length}, found {self.reserve}")
        if self._released:
            return
        if first + last > length:
            raise MethodError(
                f"mesa: first_chunk + last_chunk must be at most train_length={length}, found {first} + {last}"
            )
        if self.chunk_width is not None and first + self.chunk_width > length:
            raise MethodError(
                f"mesa: first_chunk + chunk_width must be at most train_length={length}, "
                f"found {first} + {self.chunk_width}; chunk_width may be at most {length - first}"
            )
        near = max(bound_int(self, "extrapolated_position"), last)
        if self.extrapolated_width == "auto" and self._room(near) < 1:
            raise MethodError(self._no_room(near))

    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        """See `Method.is_untouched`: everything within T; the released code also splits prompts that fit."""
        return not self._released and kv_len <= bound_int(self, "train_length") - (self.reserve if cached else 0)

    def longest_input(self, config: Any) -> float:
        """See `Method.longest_input`: with a given width, the farthest key and decoding's drift stay below T.

        For a last chunk as long as it may get under DynamicSplit.
        """
        if self._released or self.weave == "rerope" or self.extrapolated_width == "auto":
            return math.inf
        last = bound_int(self, "last_chunk") + bound_int(self, "split_margin") - 1
        near = max(bound_int(self, "extrapolated_position"), last)
        return near + 1 + self.extrapolated_width * max(0, self._room(near))

    def layout(self, prompt_len: int) -> Layout | None:
        """Return the chunks of a prompt: by DynamicSplit, or of the given `chunk_width`.

        With a given width, what it leaves over is the last chunk's up to `split_margin` tokens, as in DynamicSplit,
        else one narrower middle chunk: so chunks stand where they stand whatever follows, and the last stays short.

        Raises:
            MethodError: In variant released, the given chunk_width lets a middle chunk pass T.
        """
        length, first = bound_int(self, "train_length"), bound_int(self, "first_chunk")
        if self._released:
            return self._released_layout(prompt_len)
        if prompt_len <= length:
            return None
        rest = prompt_len - first - bound_int(self, "last_chunk")
        if self.chunk_width is not None:
            middle, left_over = divmod(rest, self.chunk_width)
            narrow = left_over if left_over >= bound_int(self, "split_margin") else 0
            return Layout(first=first, width=self.chunk_width, middle=middle, narrow=narrow)
        last, margin = bound_int(self, "last_chunk"), bound_int(self, "split_margin")
        width, middle = dynamic_split(prompt_len, first=first, last=last, margin=margin, room=length - first)
        left_over = rest - width * middle
        # Rounding leaves up to one token per chunk: in very long prompts more than the last chunk has positions for.
        near = max(bound_int(self, "extrapolated_position"), last + left_over)
        narrow = left_over if self.extrapolated_width == "auto" and self._room(near) < 1 else 0
        return Layout(first=first, width=width, middle=middle, narrow=narrow)

    def next_weave(self, kv_len: int, new: int, prompt_len: int, current: Weave | None) -> Weave | None:
        """See `Method.next_weave`: once beyond T, then again after every `reweave_every` decoded tokens."""
        length = bound_int(self, "train_length")
        if self._released:
            if kv_len <= length:
                return None
            near = (kv_len - 1) % self._released_width(prompt_len)
            width = PUBLISHED_WIDTH if self.extrapolated_width == "auto" else self.extrapolated_width
            return Stair(last=kv_len - 1, near=near, width=width, ceil=False)
        if current is None and kv_len <= length - (self.reserve if kv_len > new else 0):
            return None
        if current is not None and kv_len - 1 - current.last < bound_int(self, "reweave_every"):
            return current
        near = max(bound_int(self, "extrapolated_position") if current is None else current.near, new)
        return self._weave(kv_len - 1, near)

    def _weave(self, last: int, near: int) -> Weave:
        """Return where the keys stand for the token at index `last`; see the table of weaves in the paper."""
        if self.weave == "rerope":
            return Clamped(last=last, near=near)
        if self.weave == "leaky_rerope":
            return Leaky(last=last, near=near, factor=self._factor(last, near))
        if self.weave == "self_extend":
            return Grouped(last=last, near=near, group=self._width(last, near))
        return Stair(last=last, near=near, width=self._width(last, near), ceil=True)

    @property
    def longest_append(self) -> int | None:
        """See `Method.longest_append`: as many tokens as the shortest last chunk; the released code has no bound."""
        return None if self._released else bound_int(self, "last_chunk")

    def _released_layout(self, prompt_len: int) -> Layout | None:
        length, first = bound_int(self, "train_length"), bound_int(self, "first_chunk")
        width = self._released_width(prompt_len)
        middle = max(0, -(-(prompt_len - first) // width) - 1)
        if prompt_len <= first or (prompt_len <= length and middle <= 1):
            return None  # every piece sees all that precedes it, at linear positions
        if middle and first + width > length:
            raise MethodError(
                f"mesa: first_chunk + chunk_width must be at most train_length={length} for a prompt of "
                f"{prompt_len} tokens, found {first} + {width}; leave chunk_width out to let it be computed"
            )
        return Layout(first=first, width=width, middle=middle)

    def _released_width(self, prompt_len: int) -> int:
        """The chunk width of the released code, which serves prefill and decoding alike."""
        if self.chunk_width is not None:
            return self.chunk_width
        length, first = bound_int(self, "train_length"), bound_int(self, "first_chunk")
        if prompt_len < length - self.reserve:
            return RELEASED_INITIAL_WIDTH
        room = length - first - bound_int(self, "first_chunk_cache")
        total, last = prompt_len + self.reserve, bound_int(self, "last_chunk")
        if total < first + last:
            return room  # the released code divides by zero here
        width, _ = dynamic_split(total, first=first, last=last, margin=bound_int(self, "split_margin"), room=room)
        return width

    def _width(self, last: int, near: int) -> int:
        """The given extrapolated width, or 50, or the smallest that keeps positions and drift inside T."""
        if self.extrapolated_width != "auto":
            return self.extrapolated_width
        return max(PUBLISHED_WIDTH, -(-(last - near) // self._checked_room(near)))

    def _factor(self, last: int, near: int) -> float:
        """Leaky-ReRoPE's k: the given width, or (I - N) / (T - N) of the paper, less the room for decoded tokens."""
        if self.extrapolated_width != "auto":
            return self.extrapolated_width
        return max(1.0, (last - near) / self._checked_room(near))

    def _checked_room(self, near: int) -> int:
        room = self._room(near)
        if room < 1:
            raise MethodError(self._no_room(near))
        return room

    def _room(self, near: int) -> int:
        """Steps beyond `near` that stay inside T while up to `reweave_every` tokens are decoded."""
        return bound_int(self, "train_length") - 1 - near - bound_int(self, "reweave_every")

    def _no_room(self, near: int) -> str:
        return (
            f"mesa: no extrapolated_width keeps positions inside train_length={self.train_length}: {near} linear "
            f"positions and {self.reweave_every} decoded tokens leave {self._room(near)} steps; "
            "lower last_chunk, extrapolated_position or reweave_every"
        )


def _default(value: int | None, default: int) -> int:
    return default if value is None else value
