"""ALiBi: a bias on the scores that falls linearly with the distance, in the same linear map as a rotation.

A query at position a scores a key at position p with scale * q.k - slope * (a - p). Two components are put before the
others of queries and keys: (slope / scale, 0) and (0, 1). Bringing a query to a makes them (slope / scale,
-a slope / scale), bringing a key to p makes them (p, 1), and their product is the bias over the scale. So weaving,
storing and moving keys work as they do with rotations, no bias matrix exists, and sums of exponentiated scores over
different ranges of keys fit together.
"""

import torch
from torch import Tensor

from mesa_lm.attention.encoding import Angles, Encoding, rotate

_ADDED = 2  # components put before those of the model


class Alibi(Encoding):
    """ALiBi with one slope per head, at any positions.

    States are kept in at least float32: sixteen bits do not hold positions beyond a few hundred.

    Source:
        Press et al., arXiv 2108.12409, section 3; the slopes are the model's own.
    """

    spared = _ADDED  # a method scales what the query says, not where it is

    def __init__(self, slopes: Tensor, dtype: torch.dtype) -> None:
        """Keep the slopes.

        Args:
            slopes: (num_heads,) positive.
            dtype: Of the model's queries and keys.
        """
        super().__init__(slopes.device, torch.promote_types(dtype, torch.float32))
        self.slopes = slopes.to(self.dtype)

    def angles(self, position: Tensor, dtype: torch.dtype | None = None) -> Angles:
        """Return the shear that adds a multiple of one added component to the other, for queries and for keys."""
        place = position.to(self.device, dtype or self.dtype)[..., None]
        return Angles(torch.ones_like(place).expand(*place.shape[:-1], 2), -place.expand(*place.shape[:-1], 2))

    def shift(self, distance: Tensor) -> Angles:
        """Return the shear of a key alone, whose added 1 stays."""
        place = distance.to(self.device, self.dtype)[..., None]
        return Angles(
            torch.ones_like(place).expand(*place.shape[:-1], 2), torch.cat([-place, torch.zeros_like(place)], -1)
        )

    def enter(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states with the added components; those of values are zeros, since kernels want equal widths."""
        slope = (self.slopes.to(query.device) / scale)[None, :, None, None].expand(*query.shape[:-1], 1)
        query = torch.cat([slope, torch.zeros_like(slope), query.to(self.dtype)], dim=-1)
        return query, self._widened(key, (0, 1)), self._widened(value, (0, 0))

    def enter_cached(self, key: Tensor, value: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys at their positions, which the untouched model caches without, and values, both widened."""
        return rotate(self._widened(key, (0, 1)), self.angles(index[None])), self._widened(value, (0, 0))

    def leave(self, output: Tensor, value: Tensor) -> Tensor:
        """Return the output without the added components, in the values' dtype."""
        return output[..., _ADDED:].to(value.dtype)

    def _widened(self, states: Tensor, added: tuple[int, int]) -> Tensor:
        front = torch.tensor(added, dtype=self.dtype, device=states.device)
        return torch.cat([front.expand(*states.shape[:-1], _ADDED), states.to(self.dtype)], dim=-1)
