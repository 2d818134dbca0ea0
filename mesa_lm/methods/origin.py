"""The untouched model."""

from dataclasses import dataclass
from typing import ClassVar

from mesa_lm.methods.base import Kind, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(Method):
    """Run the model as it is, at any length.

    Source: none; the baseline of every comparison.
    """

    name: ClassVar[str] = "origin"
    kind: ClassVar[Kind] = "baseline"

    @property
    def depends_on_length(self) -> bool:
        """The untouched model treats a token alike whatever follows it."""
        return False
