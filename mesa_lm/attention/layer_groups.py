"""Which layers of a model share a position encoding, and which keep a sliding window."""

from collections.abc import Iterator
from typing import NamedTuple

from mesa_lm.attention.encoding import Encoding


class LayerGroup(NamedTuple):
    """Layers that are treated alike.

    Attributes:
        encoding: Their position encoding.
        window: Keys that each of their queries sees, itself included, at true distances, whatever the method; None
            where the method decides.
    """

    encoding: Encoding
    window: int | None = None


class Layers(NamedTuple):
    """The layers of a model.

    Attributes:
        groups: Their kinds.
        group_of: For each layer the index of its group.
    """

    groups: tuple[LayerGroup, ...]
    group_of: tuple[int, ...]

    def of(self, layer: int) -> LayerGroup:
        """Return a layer's group."""
        return self.groups[self.group_of[layer]]

    def members(self) -> Iterator[tuple[LayerGroup, list[int]]]:
        """Return each group with its layers."""
        for number, group in enumerate(self.groups):
            yield group, [layer for layer, own in enumerate(self.group_of) if own == number]

    @property
    def all_windowed(self) -> bool:
        """Whether every layer keeps a sliding window, so that no method changes anything."""
        return all(group.window is not None for group in self.groups)

    @property
    def share_chunks(self) -> bool:
        """Whether a middle chunk's keys and values do not depend on where it stands or on the prompt's length."""
        return all(group.window is None and not group.encoding.follows_length for group in self.groups)
