"""Mesa-Extrapolation as its authors' code computes it, which differs from their paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.geometry import Layout, dynamic_split
from mesa_lm.methods.mesa_chunks import PUBLISHED_WIDTH, MesaChunks
from mesa_lm.methods.parameters import parameter
from mesa_lm.methods.weaves import Placement, Stair

# The released code computes no chunk width for prompts that fit and keeps this initial one.
INITIAL_WIDTH = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class MesaReleased(MesaChunks):
    """Prefill in chunks that see the first chunk and themselves; step the key positions chunk by chunk.

    Positions stay linear in the chunk of the newest token alone, every key is placed anew for every decoded token, and
    prompts that fit are cut too. For reproducing the authors' numbers.

    Source: methods/mesa_extrapolation.py of github.com/soacker/Mesa-Extrapolation.
    """

    split_margin: int = parameter(200, "tokens the last chunk may take above L, M_max", at_least=1)
    variant: Literal["released"] = parameter("released", "the authors' code")
    first_chunk_cache: int = parameter(
        lambda T, method: method.first_chunk,
        "tokens that the code keeps free beside the first chunk",
        shown="first_chunk",
        at_least=0,
    )

    @override
    def check_fit(self) -> None:
        self.check_room(self.first_chunk + self.first_chunk_cache)

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return False

    @override
    def layout(self, prompt_len: int) -> Layout | None:
        """Return the chunks of a prompt.

        Raises:
            MethodError: The given chunk_width lets a middle chunk pass T.
        """
        length, first = self.train_length, self.first_chunk
        width = self._width(prompt_len)
        middle = max(0, -(-(prompt_len - first) // width) - 1)
        if prompt_len <= first or (prompt_len <= length and middle <= 1):
            return None  # every piece sees all that precedes it, at linear positions
        if middle and first + width > length:
            raise MethodError(
                f"mesa: first_chunk + chunk_width must be at most train_length={length} for a prompt of "
                f"{prompt_len} tokens, found {first} + {width}; leave chunk_width out to let it be computed"
            )
        return Layout(first=first, width=width, middle=middle)

    @override
    def next_weave(self, kv_len: int, new: int, prompt_len: int, current: Placement | None) -> Placement | None:
        if kv_len <= self.train_length:
            return None
        near = (kv_len - 1) % self._width(prompt_len)
        width = PUBLISHED_WIDTH if self.extrapolated_width == "auto" else self.extrapolated_width
        return Placement(last=kv_len - 1, weave=Stair(near=near, width=width, ceil=False))

    def _width(self, prompt_len: int) -> int:
        """Return the chunk width, which serves prefill and decoding alike."""
        if self.chunk_width is not None:
            return self.chunk_width
        first, last = self.first_chunk, self.last_chunk
        if prompt_len < self.train_length - self.reserve:
            return INITIAL_WIDTH
        room = self.train_length - first - self.first_chunk_cache
        total = prompt_len + self.reserve
        if total < first + last:
            return room  # the released code divides by zero here
        width, _ = dynamic_split(total, first=first, last=last, margin=self.split_margin, room=room)
        return width
