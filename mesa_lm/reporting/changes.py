"""What changed since an earlier leaderboard."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mesa_lm.lengths import length_label
from mesa_lm.reporting.lm_eval_files import Measurement
from mesa_lm.reporting.ranking import Entry, effective_length, mean_over, p_value_of_samples
from mesa_lm.reporting.statistics import SIGNIFICANT, holm, unpaired_p_value

LOSS_MARGIN = 0.01  # nats per token by which the NLL may rise


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Hold how one method of one model on one task fares now and before, compared over the lengths that both have.

    Args:
        kind: "new" and "gone" where one side lacks it. "worse" if the effective length is shorter, the mean is worse
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
    p_values = holm([None if old is None else _p_value(entry, old) for entry, old in pairs])
    found = [
        Change(kind="new", now=entry, before=None) if old is None else _change(entry, old, p_value)
        for (entry, old), p_value in zip(pairs, p_values, strict=True)
    ]
    return found + [Change(kind="gone", now=None, before=entry) for entry in earlier.values()]


def _key(entry: Entry) -> tuple[str, str, str, str]:
    return entry.model, entry.task, entry.method, entry.metric


def _at_common_lengths(
    now: Sequence[Measurement], before: Sequence[Measurement]
) -> tuple[list[Measurement], list[Measurement]]:
    """Return the rows of the lengths that both have."""
    common = {row.length for row in now} & {row.length for row in before}
    return [row for row in now if row.length in common], [row for row in before if row.length in common]


def _change(now: Entry, before: Entry, p_value: float | None) -> Change:
    """Compare an entry with the one before; the p-value is that of their means."""
    after, earlier = _at_common_lengths(now.points, before.points)
    found: list[tuple[Literal["worse", "better"], str]] = []
    for length in sorted(set(before.lengths) - set(now.lengths)):
        why = "out of memory" if length in now.out_of_memory else "not measured any more"
        found.append(("worse", f"{why} at {length_label(length)}"))
    difference = None
    if after:
        reached = [effective_length(points) or 0 for points in (after, earlier)]
        if reached[0] != reached[1]:
            told = [length_label(length) if length else "none" for length in reached]
            found.append((_verdict(reached[0] < reached[1]), f"effective length {told[0]}, was {told[1]}"))
        means = [fmean(point.value for point in points) for points in (after, earlier)]
        difference = means[0] - means[1]
        if p_value is not None and p_value < SIGNIFICANT:
            found.append(
                (
                    _verdict((difference < 0) == now.higher_is_better),
                    f"mean {means[0]:.3f}, was {means[1]:.3f} (p = {p_value:.2g})",
                )
            )
    losses = [mean_over(points) for points in _at_common_lengths(now.losses, before.losses)]
    if losses[0] is not None and losses[1] is not None and abs(losses[0] - losses[1]) > LOSS_MARGIN:
        found.append((_verdict(losses[0] > losses[1]), f"NLL {losses[0]:.3f}, was {losses[1]:.3f}"))
    verdicts = [verdict for verdict, _ in found]
    kind = "same" if not found else _verdict("worse" in verdicts)
    reasons = tuple(reason for verdict, reason in found if verdict == kind)
    return Change(kind=kind, now=now, before=before, reasons=reasons, difference=difference, p_value=p_value)


def _verdict(is_worse: bool) -> Literal["worse", "better"]:
    return "worse" if is_worse else "better"


def _p_value(now: Entry, before: Entry) -> float | None:
    """Return how likely the difference is by chance: over common samples if they were logged, else from the means."""
    after, earlier = _at_common_lengths(now.points, before.points)
    if not after:
        return None
    p_value = p_value_of_samples(now, before)
    if p_value is None:
        return unpaired_p_value(after, earlier)
    return p_value
