"""What one call of a model's forward is given, and which logits it wants back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from mesa_lm.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardCall:
    """The arguments of one call that decide what has to be computed.

    Attributes:
        input_ids: (batch, new) or None.
        inputs_embeds: (batch, new, hidden) or None; exactly one of the two is given.
        attention_mask: (batch, cached + new), 0 for padding; None for no padding.
        position_ids: (batch or 1, new) or None; only checked.
        cache: Filled by earlier calls, or empty, or None.
        use_cache: Whether the result carries a cache.
        logits_to_keep: As in transformers: number of last columns (0: all) or a 1-D tensor of columns.
    """

    input_ids: Tensor | None
    inputs_embeds: Tensor | None = None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    cache: Cache | None = None
    use_cache: bool = False
    logits_to_keep: int | Tensor = 0

    def __post_init__(self) -> None:
        if (self.input_ids is None) == (self.inputs_embeds is None):
            raise ModelError("give exactly one of input_ids and inputs_embeds")

    @property
    def tokens(self) -> Tensor:
        """The new tokens, as ids or as embeddings."""
        given = self.inputs_embeds if self.input_ids is None else self.input_ids
        assert given is not None
        return given

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.tokens.shape[0]

    @property
    def new(self) -> int:
        """New columns, padding included."""
        return self.tokens.shape[1]

    @property
    def past(self) -> int:
        """Cached columns, padding included."""
        return 0 if self.cache is None else int(self.cache.get_seq_length())

    def longest_row(self) -> int:
        """Return the most tokens that a row has after the call, cached ones included, padding not."""
        if self.attention_mask is None or self.attention_mask.ndim != 2:
            return self.past + self.new
        return int(self.attention_mask.sum(-1).max())

    def part(self, rows: Tensor, columns: Tensor) -> dict[str, Tensor]:
        """Return some of the new tokens as keyword argument of the model's forward.

        Args:
            rows: (rows of the part,) batch rows.
            columns: (rows of the part, len) their columns.
        """
        device = self.tokens.device
        return self._named(self.tokens[rows[:, None].to(device), columns.to(device)])

    def whole(self) -> dict[str, Any]:
        """Return all new tokens, and which logits are wanted, as keyword arguments of the model's forward."""
        return {**self._named(self.tokens), "logits_to_keep": self.logits_to_keep}

    def _named(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"inputs_embeds" if self.input_ids is None else "input_ids": tokens}

    def cached_columns(self) -> list[Tensor]:
        """Return for each row the columns of its cached tokens."""
        if self.attention_mask is None:
            return [torch.arange(self.past)] * self.batch
        return [row.nonzero()[:, 0] for row in self._padding()[:, : self.past]]

    def cached_starts(self) -> list[int]:
        """Return for each row the position of its first cached token, from that of its first new one."""
        lengths = [len(cached) for cached in self.cached_columns()]
        if self.position_ids is None:  # transformers counts columns
            return [self.past - length for length in lengths]
        first = [int(own[0]) if len(own) else None for own in self.columns()]
        positions = self.position_ids.cpu().expand(self.batch, -1)
        return [0 if column is None else int(positions[row, column]) - lengths[row] for row, column in enumerate(first)]

    def columns(self) -> list[Tensor]:
        """Return for each row the columns of its new tokens, counted from the first new one.

        Raises:
            ModelError: The mask or the positions are of a kind that cannot be followed.
        """
        if self.attention_mask is None:
            own = [torch.arange(self.new)] * self.batch
        else:
            own = [row.nonzero()[:, 0] for row in self._padding()[:, self.past :]]
            if not any(map(len, own)):
                raise ModelError("attention_mask hides every new token")
        self._check_positions(own)
        return own

    def _padding(self) -> Tensor:
        """Return the mask as (batch, cached + new), False for padding, on the CPU.

        A causal one of four dimensions is what `generate` makes of that for a static cache.

        Raises:
            ModelError: It says something else.
        """
        assert self.attention_mask is not None
        past, new, mask = self.past, self.new, self.attention_mask.cpu()
        if mask.shape == (self.batch, past + new):
            return mask.bool()
        if mask.ndim == 4 and mask.shape[:3] == (self.batch, 1, new) and mask.shape[3] >= past + new:
            # One that is not boolean is added to the scores.
            visible = (mask if mask.dtype == torch.bool else mask == 0)[:, 0]
            is_mask = mask.dtype == torch.bool or bool(((mask == 0) | (mask < -1e4)).all())
            kept = visible[:, -1, : past + new]
            causal = torch.ones(new, past + new, dtype=torch.bool).tril(past) & kept[:, None]
            differs = (visible[..., : past + new] != causal).any(-1) | visible[..., past + new :].any(-1)
            if is_mask and not bool((differs & kept[:, past:]).any()):
                return kept
        raise ModelError(
            f"attention_mask must be 2-D and cover cached and new tokens, ({self.batch}, {past + new}), beyond the "
            f"training length; found {tuple(mask.shape)}"
        )

    def _check_positions(self, columns: list[Tensor]) -> None:
        """Refuse position_ids that are not consecutive over a row's tokens; where they start makes no difference."""
        if self.position_ids is None or self.new == 1:
            return
        positions = self.position_ids.cpu().expand(self.batch, -1)
        for row, own in enumerate(columns):
            if bool((positions[row, own].diff() != 1).any()):
                raise ModelError(f"position_ids must count a row's tokens one by one; row {row} does not")


class WantedLogits:
    """The logits that a call asks for, put together from those of its passes."""

    def __init__(self, call: ForwardCall) -> None:
        """Find out which columns' logits are wanted.

        Args:
            call: The call.

        Raises:
            ModelError: It asks for them in a way that cannot be followed.
        """
        asked = call.logits_to_keep
        if not isinstance(asked, int) and asked.ndim != 1:
            raise ModelError(
                "logits_to_keep must be an integer or a 1-D tensor beyond the training length, found "
                f"{asked.ndim} dimensions"
            )
        self._call = call
        self._logits: Tensor | None = None

    @cached_property
    def _columns(self) -> Tensor:
        """The columns asked for, in order."""
        asked, columns = self._call.logits_to_keep, torch.arange(self._call.new)
        return columns[-asked:] if isinstance(asked, int) else columns[asked.cpu()]

    @cached_property
    def slot(self) -> Tensor:
        """For each new column its place among the wanted ones; -1 where its logits are not wanted."""
        wanted = self._columns.unique()
        slot = torch.full((self._call.new,), -1)
        slot[wanted] = torch.arange(len(wanted))
        return slot

    def of(self, columns: Tensor) -> int | Tensor:
        """Return which logits of a pass are to be computed, as its `logits_to_keep`: those that any of its rows wants.

        Args:
            columns: (rows of the pass, len) input columns of its tokens.

        Returns:
            0 for all, else the indices along `len`.
        """
        kept = self._wanted_by_any_row(columns)
        return 0 if bool(kept.all()) else kept.nonzero()[:, 0]

    def put(self, rows: Tensor, columns: Tensor, logits: Tensor) -> None:
        """Take the logits of a pass.

        Args:
            rows: (rows of the pass,) their batch rows.
            columns: (rows of the pass, len) input columns of its tokens.
            logits: (rows of the pass, kept, vocabulary), as `of` asked for.
        """
        if self._logits is None:
            shape = self._call.batch, int(self.slot.max()) + 1
            self._logits = logits.new_zeros(*shape, logits.shape[-1])
        slot = self.slot[columns[:, self._wanted_by_any_row(columns)]]
        wanted = slot >= 0
        if bool(wanted.any()):
            row, column = (index.to(logits.device) for index in wanted.nonzero(as_tuple=True))
            self._logits[rows.to(logits.device)[row], slot[wanted].to(logits.device)] = logits[row, column]

    def _wanted_by_any_row(self, columns: Tensor) -> Tensor:
        """Return (len,) whether some row of a pass wants the logits there."""
        return (self.slot[columns] >= 0).any(0)

    def result(self) -> Tensor:
        """Return the wanted logits of every row, in the order asked for, (batch, wanted columns, vocabulary)."""
        assert self._logits is not None, "no pass has run"
        if isinstance(self._call.logits_to_keep, int):
            return self._logits
        return self._logits[:, self.slot[self._columns].to(self._logits.device)]
