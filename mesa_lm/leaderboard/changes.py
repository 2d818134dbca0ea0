"""What changed since an earlier leaderboard."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from scipy.stats import norm

from mesa_lm.compare import paired
from mesa_lm.leaderboard.ranking import Entry, pooled
from mesa_lm.results import Z_95

SIGNIFICANT = 0.05
LOSS_MARGIN = 0.01  # nats per token by which the NLL may rise


class Change(NamedTuple):
    """Hold how one method of one model on one task fares now and before.

    Args:
        kind: "new" and "gone" where one side lacks it, "worse" if the effective length is shorter, the mean is lower
            beyond chance or the NLL is higher by more than 0.01, "better" if one of them improved so, else "same".
        now: The entry now; None if gone.
        before: The entry before; None if new.
        p_value: Probability of a difference of the means that large by chance; None where it cannot be told.
    """

    kind: Literal["new", "gone", "worse", "better", "same"]
    now: Entry | None
    before: Entry | None
    p_value: float | None = None

    @property
    def entry(self) -> Entry:
        """The entry now, or the one that is gone."""
        entry = self.now or self.before
        assert entry is not None
        return entry

    @property
    def is_regression(self) -> bool:
        """Whether the method got worse, or was not measured any more."""
        return self.kind in ("worse", "gone")


def changes(now: Sequence[Entry], before: Sequence[Entry]) -> list[Change]:
    """Compare two leaderboards.

    Args:
        now: The entries.
        before: Those of an earlier run.

    Returns:
        One change per entry of now, in their order, then those that are gone.
    """
    earlier = {_key(entry): entry for entry in before}
    found = [_change(entry, earlier.pop(_key(entry), None)) for entry in now]
    return found + [Change("gone", None, entry) for entry in earlier.values()]


def _key(entry: Entry) -> tuple[str, str, str]:
    return entry.model, entry.task, entry.method


def _change(now: Entry, before: Entry | None) -> Change:
    if before is None:
        return Change("new", now, None)
    p_value = _p_value(now, before)
    certain = p_value is not None and p_value < SIGNIFICANT
    longer = (now.effective_length or 0) - (before.effective_length or 0)
    lower_loss = (before.loss - now.loss) if before.loss is not None and now.loss is not None else 0.0
    difference = _mean(now, before) - _mean(before, now)
    if longer < 0 or (certain and difference < 0) or lower_loss < -LOSS_MARGIN:
        return Change("worse", now, before, p_value)
    if longer > 0 or (certain and difference > 0) or lower_loss > LOSS_MARGIN:
        return Change("better", now, before, p_value)
    return Change("same", now, before, p_value)


def _mean(entry: Entry, other: Entry) -> float:
    """Return the mean over the lengths that both have."""
    lengths = {cell.length for cell in other.cells}
    values = [cell.value for cell in entry.cells if cell.length in lengths]
    return sum(values) / len(values) if values else math.nan


def _p_value(now: Entry, before: Entry) -> float | None:
    """Return how likely the difference is by chance: over common samples if they were logged, else from intervals."""
    lengths = {cell.length for cell in now.cells} & {cell.length for cell in before.cells}
    if not lengths:
        return None
    cells = [[cell for cell in entry.cells if cell.length in lengths] for entry in (now, before)]
    after, earlier = map(pooled, cells)
    common = after.keys() & earlier.keys() if after and earlier else set()
    if after and earlier and common:
        return paired({name: earlier[name] for name in common}, {name: after[name] for name in common})[1]
    if now.mean_interval is None or before.mean_interval is None:
        return None
    half = [(interval.high - interval.low) / 2 / Z_95 for interval in (now.mean_interval, before.mean_interval)]
    error = math.hypot(*half)
    return float(2 * norm.sf(abs(now.mean - before.mean) / error)) if error else float(now.mean == before.mean)
