"""What changed since an earlier leaderboard."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.stats import norm

from mesa_lm.reporting.comparison import paired
from mesa_lm.reporting.ranking import Entry, effective_length, holm, mean, mean_interval, pooled
from mesa_lm.reporting.results import Z_95, Cell, length_label

SIGNIFICANT = 0.05
LOSS_MARGIN = 0.01  # nats per token by which the NLL may rise


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Hold how one method of one model on one task fares now and before, compared over the lengths that both have.

    Args:
        kind: "new" and "gone" where one side lacks it. "worse" if the effective length is shorter, the mean is lower
            beyond chance, the NLL is higher by more than 0.01, or a length is no longer measured; "better" if none of
            these holds and one of the first three improved so; else "same".
        now: The entry now; None if gone.
        before: The entry before; None if new.
        reasons: What makes it worse or better, in words.
        difference: Mean now - mean before, over the lengths that both have; None where they have none.
        p_value: Probability of such a difference by chance, after Holm's correction for the number of entries
            compared; None where it cannot be told.
    """

    kind: Literal["new", "gone", "worse", "better", "same"]
    now: Entry | None
    before: Entry | None
    reasons: tuple[str, ...] = ()
    difference: float | None = None
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
    pairs = [(entry, earlier.pop(_key(entry), None)) for entry in now]
    p_values = holm([None if old is None else _p_value(*_common(entry.cells, old.cells)) for entry, old in pairs])
    found = [
        Change(kind="new", now=entry, before=None) if old is None else _change(entry, old, p_value)
        for (entry, old), p_value in zip(pairs, p_values, strict=True)
    ]
    return found + [Change(kind="gone", now=None, before=entry) for entry in earlier.values()]


def _key(entry: Entry) -> tuple[str, str, str, str]:
    return entry.model, entry.task, entry.method, entry.metric


def _common(now: Sequence[Cell], before: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Return the cells of the lengths that both have."""
    lengths = {cell.length for cell in now} & {cell.length for cell in before}
    after, earlier = ([cell for cell in cells if cell.length in lengths] for cells in (now, before))
    return after, earlier


def _change(now: Entry, before: Entry, p_value: float | None) -> Change:
    after, earlier = _common(now.cells, before.cells)
    worse: list[str] = []
    better: list[str] = []
    lost = sorted({cell.length for cell in before.cells} - {cell.length for cell in now.cells})
    for length in lost:
        why = "out of memory" if length in now.out_of_memory else "not measured any more"
        worse.append(f"{why} at {length_label(length)}")
    change = Change(kind="same", now=now, before=before, p_value=p_value)
    if after:
        lengths = [effective_length(cells) or 0 for cells in (after, earlier)]
        if lengths[0] != lengths[1]:
            told = [length_label(length) if length else "none" for length in lengths]
            (worse if lengths[0] < lengths[1] else better).append(f"effective length {told[0]}, was {told[1]}")
        means = mean(after), mean(earlier)
        assert means[0] is not None and means[1] is not None
        change = replace(change, difference=means[0] - means[1])
        if p_value is not None and p_value < SIGNIFICANT:
            side = worse if means[0] < means[1] else better
            side.append(f"mean {means[0]:.3f}, was {means[1]:.3f} (p = {p_value:.2g})")
    losses = [mean(cells) for cells in _common(now.losses, before.losses)]
    if losses[0] is not None and losses[1] is not None and abs(losses[0] - losses[1]) > LOSS_MARGIN:
        (worse if losses[0] > losses[1] else better).append(f"NLL {losses[0]:.3f}, was {losses[1]:.3f}")
    if worse:
        return replace(change, kind="worse", reasons=tuple(worse))
    return replace(change, kind="better", reasons=tuple(better)) if better else change


def _p_value(now: Sequence[Cell], before: Sequence[Cell]) -> float | None:
    """Return how likely the difference is by chance: over common samples if they were logged, else from intervals."""
    if not now:
        return None
    after, earlier = pooled(now), pooled(before)
    common = after.keys() & earlier.keys() if after and earlier else set()
    if after and earlier and common:
        return paired({name: earlier[name] for name in common}, {name: after[name] for name in common})[1]
    intervals = mean_interval(now), mean_interval(before)
    means = mean(now), mean(before)
    if intervals[0] is None or intervals[1] is None or means[0] is None or means[1] is None:
        return None
    half = [(interval.high - interval.low) / 2 / Z_95 for interval in intervals if interval]
    error = math.hypot(*half)
    return float(2 * norm.sf(abs(means[0] - means[1]) / error)) if error else float(means[0] == means[1])
