"""What both variants of Mesa-Extrapolation declare: the chunks of a prompt and the width of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Kind, ScaledMethod
from mesa_lm.methods.parameters import parameter

PUBLISHED_WIDTH = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class MesaChunks(ScaledMethod):
    """Base of the variants; the defaults give the published constants from T = 2048 on.

    Source: Mesa-Extrapolation, NeurIPS 2024, arXiv 2410.15859.
    """

    name: ClassVar[str] = "mesa"
    kind: ClassVar[Kind] = "chunked"

    first_chunk: int = parameter(
        lambda T: max(1, min(100, T // 20)), "first chunk F that every chunk sees", shown="min(100, T/20)", at_least=1
    )
    last_chunk: int = parameter(
        lambda T: max(1, min(512, T // 4)), "shortest last chunk L", shown="min(512, T/4)", at_least=1
    )
    chunk_width: int | None = parameter(
        None, "width of the middle chunks; none: DynamicSplit, at most T - F", at_least=1
    )
    split_margin: int = parameter(
        lambda T: max(1, min(200, T // 10)),
        "tokens the last chunk may take above L, M_max",
        shown="min(200, T/10)",
        at_least=1,
    )
    reserve: int = parameter(
        0, "weave a growing context this many tokens before T; the released code has 50", at_least=0
    )
    extrapolated_width: int | Literal["auto"] = parameter(
        "auto",
        "keys per position step E beyond N; auto: 50, or the smallest width that keeps positions inside T",
        at_least=1,
    )

    def check_room(self, kept_free: int) -> None:
        """Refuse sizes that leave no token of T for anything else.

        Args:
            kept_free: Tokens that stand before every middle chunk.

        Raises:
            MethodError: They do.
        """
        length = self.train_length
        if kept_free >= length:
            raise MethodError(
                f"mesa: first_chunk (with first_chunk_cache) must leave room in train_length={length}, "
                f"found {kept_free}; it may be at most {length - 1}"
            )
        if self.reserve >= length:
            raise MethodError(f"mesa: reserve must be below train_length={length}, found {self.reserve}")
