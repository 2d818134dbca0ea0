"""Rows of unequal length as one batch, and how many rows fit into memory."""

from collections.abc import Callable, Sequence

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def padded(rows: Sequence[Tensor], side: str, value: int) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids to equal length.

    Args:
        rows: 1-D tensors.
        side: "left" or "right".
        value: The padding's token id.

    Returns:
        Token ids and attention mask, both (rows, length).
    """
    ids = pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return ids, mask


def largest_batch(attempt: Callable[[int], object], limit: int) -> int:
    """Return the largest of limit, limit/2, limit/4 ... 1 rows that does not run out of memory; 1 is not tried.

    Args:
        attempt: Runs so many rows.
        limit: The most rows to try, at least 1.
    """
    while limit > 1:
        clear_device_cache(garbage_collection=True)
        try:
            attempt(limit)
            break
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        limit //= 2
    clear_device_cache(garbage_collection=True)
    return limit
