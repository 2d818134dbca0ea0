"""Mesa-Extrapolation: chunk-based triangular attention with Stair PE in the last chunk and in decoding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.geometry import Layout, dynamic_split
from mesa_lm.methods.mesa_chunks import PUBLISHED_WIDTH, MesaChunks
from mesa_lm.methods.mesa_released import MesaReleased
from mesa_lm.methods.parameters import parameter
from mesa_lm.methods.weaves import Clamped, Grouped, Leaky, Placement, Stair, Weave


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesa(MesaChunks):
    """Prefill in chunks that see the first chunk and themselves; weave key positions for the last chunk.

    Key j of a prompt of I tokens is scored at position (I-1) - W(I-1-j); queries keep their index.

    Source: Mesa-Extrapolation, NeurIPS 2024, arXiv 2410.15859.
    """

    # Farther than the last chunk is long, where T allows, so that its first queries have some linear context.
    extrapolated_position: int = parameter(
        lambda T: max(1, min(512, 2 * T // 5)),
        "distance N up to which positions stay linear",
        shown="min(512, 2T/5)",
        at_least=0,
    )
    reweave_every: int = parameter(
        lambda T, method: method.last_chunk,
        "decoded tokens between two computations of the key positions",
        shown="last_chunk",
        at_least=1,
    )
    weave: Literal["stair", "rerope", "leaky_rerope", "self_extend"] = parameter(
        "stair", "key positions beyond N in the last chunk and in decoding"
    )
    variant: Literal["paper", "released"] = parameter("paper", "the paper's definition, or the authors' code")

    def __new__(cls, **parameters: Any) -> Any:
        """Create a method; `variant="released"` creates the class that follows the authors' code."""
        return MesaReleased(**parameters) if parameters.get("variant") == "released" else object.__new__(cls)

    @override
    def check_together(self) -> None:
        if self.weave == "rerope" and self.extrapolated_width != "auto":
            raise MethodError(
                f"mesa: weave 'rerope' has no extrapolated_width, found {self.extrapolated_width!r}; leave it out"
            )

    @override
    def check_fit(self) -> None:
        length, first, last = self.train_length, self.first_chunk, self.last_chunk
        self.check_room(first)
        if first + last > length:
            raise MethodError(
                f"mesa: first_chunk + last_chunk must be at most train_length={length}, found {first} + {last}"
            )
        if self.chunk_width is not None and first + self.chunk_width > length:
            raise MethodError(
                f"mesa: first_chunk + chunk_width must be at most train_length={length}, "
                f"found {first} + {self.chunk_width}; chunk_width may be at most {length - first}"
            )
        if self.extrapolated_width == "auto":
            self._checked_room(max(self.extrapolated_position, last))

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return kv_len <= self.train_length - (self.reserve if cached else 0)

    @override
    def longest_input(self, config: Any) -> float:
        """Return where the farthest key, or decoding's drift, reaches T with a given width.

        For a last chunk as long as it may get under DynamicSplit.
        """
        if self.weave == "rerope" or self.extrapolated_width == "auto":
            return math.inf
        near = max(self.extrapolated_position, self.last_chunk + self.split_margin - 1)
        return near + 1 + self.extrapolated_width * max(0, self._room(near))

    @override
    def layout(self, prompt_len: int) -> Layout | None:
        """Return the chunks of a prompt: by DynamicSplit, or of the given `chunk_width`.

        With a given width, what it leaves over is the last chunk's up to `split_margin` tokens, as in DynamicSplit,
        else one narrower middle chunk: so chunks stand where they stand whatever follows them, and the last stays
        short.
        """
        length, first, last, margin = self.train_length, self.first_chunk, self.last_chunk, self.split_margin
        if prompt_len <= length:
            return None
        rest = prompt_len - first - last
        if self.chunk_width is not None:
            middle, left_over = divmod(rest, self.chunk_width)
            narrow = left_over if left_over >= margin else 0
            return Layout(first=first, width=self.chunk_width, middle=middle, narrow=narrow)
        width, middle = dynamic_split(prompt_len, first=first, last=last, margin=margin, room=length - first)
        left_over = rest - width * middle
        # Rounding leaves up to one token per chunk: in very long prompts more than the last chunk has positions for.
        near = max(self.extrapolated_position, last + left_over)
        if self.extrapolated_width != "auto" or self._room(near) >= 1:
            return Layout(first=first, width=width, middle=middle)
        more, narrow = divmod(left_over, width)
        return Layout(first=first, width=width, middle=middle + more, narrow=narrow)

    @override
    def next_weave(self, kv_len: int, new: int, prompt_len: int, current: Placement | None) -> Placement | None:
        """Return a placement once beyond T, then another one after every `reweave_every` decoded tokens."""
        if current is None and kv_len <= self.train_length - (self.reserve if kv_len > new else 0):
            return None
        if current is not None and kv_len - 1 - current.last < self.reweave_every:
            return current
        near = max(self.extrapolated_position if current is None else current.near, new)
        return Placement(last=kv_len - 1, weave=self._weave(kv_len - 1, near))

    @property
    @override
    def longest_append(self) -> int:
        """As many tokens as the shortest last chunk."""
        return self.last_chunk

    def _weave(self, last: int, near: int) -> Weave:
        """Return the weave for the token at index `last`; see the table of weaves in the paper."""
        if self.weave == "rerope":
            return Clamped(near=near)
        given = None if self.extrapolated_width == "auto" else self.extrapolated_width
        if self.weave == "leaky_rerope":
            # (I - N) / (T - N) of the paper, less the room for decoded tokens.
            return Leaky(near=near, factor=given or max(1.0, (last - near) / self._checked_room(near)))
        width = given or max(PUBLISHED_WIDTH, -(-(last - near) // self._checked_room(near)))
        if self.weave == "self_extend":
            return Grouped(near=near, group=width, offset=near - near // width)
        return Stair(near=near, width=width)

    def _room(self, near: int) -> int:
        """Steps beyond `near` that stay inside T while up to `reweave_every` tokens are decoded."""
        return self.train_length - 1 - near - self.reweave_every

    def _checked_room(self, near: int) -> int:
        room = self._room(near)
        if room < 1:
            raise MethodError(
                f"mesa: no extrapolated_width keeps positions inside train_length={self.train_length}: {near} linear "
                f"positions and {self.reweave_every} decoded tokens leave {room} steps; "
                "lower last_chunk, extrapolated_position or reweave_every"
            )
        return room
