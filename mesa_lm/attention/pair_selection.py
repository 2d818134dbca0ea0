"""Rotated pairs of components that a head has at other positions than the rest.

Scores are sums over components. So a head sees its own pairs at one position and the others at another by having twice
as many components: those of its pairs at the first position, then the others at the second. Keys have all components
at both, and are not repeated for the heads that share them.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

Selection = tuple[tuple[int, ...], ...]


@lru_cache(maxsize=1024)
def chosen_components(
    selection: Selection, pairs: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return 1 for the components that a head has at its first position, 0 for others, (1, num_heads, 1, head_dim).

    Args:
        selection: For each head its pairs.
        pairs: That are rotated; components that are not count as the head's own.
        head_dim: Components of a head.
        device: Where the states are.
        dtype: Of the states.
    """
    chosen = torch.ones(len(selection), head_dim, dtype=dtype)
    chosen[:, : 2 * pairs] = 0
    for head, own in enumerate(selection):
        chosen[head, list(own)] = 1
        chosen[head, [pair + pairs for pair in own]] = 1
    return chosen[None, :, None].to(device)


def doubled_query(query: Tensor, other: Tensor, chosen: Tensor) -> Tensor:
    """Return queries with the chosen components of one position and the rest of another, (..., 2 head_dim)."""
    return torch.cat([query * chosen, other * (1 - chosen)], dim=-1)


def doubled_keys(key: Tensor, other: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys at both positions, and values of equal width, which kernels want; the added ones are zeros."""
    return torch.cat([key, other], dim=-1), pad(value, (0, value.shape[-1]))
