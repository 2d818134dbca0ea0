"""What a layer with a sliding window of its own does, said as a method."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mesa_lm.methods.base import Method
from mesa_lm.methods.geometry import Band, Extent


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWindow(Method):
    """See the last `window` keys at their true distances.

    Source: Mistral 7B, arXiv 2310.06825, section 2.
    """

    name: ClassVar[str] = "layer_window"

    window: int

    def bands(self, index: Tensor, extent: Extent) -> tuple[Band, ...]:
        """Return one band: the last keys."""
        return (Band((index - self.window + 1).clamp(min=0), index + 1, index, lambda key: key),)
