"""The methods of a model over all of its tasks: mean ranks, and scores as shares of what `origin` has within T."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

from mesa_lm.lengths import length_label
from mesa_lm.reporting.ranking import Entry, baseline_of

OVERALL_COLUMNS = {
    "#": "Place: the higher share of origin first. Methods that miss something have none.",
    "method": "With the parameters that differ from its defaults.",
    "mean rank": "Of the ranks in the tables below; empty where the method misses a task.",
    "share of origin": "Mean over tasks and lengths of the score, divided by what origin scores within T; empty where "
    "the method misses a length of a task, for nothing is imputed.",
    "towards longer": "The same with weights 1, 2, 3 ... for the lengths of a task, the shortest first (RULER).",
    "towards shorter": "The same with these weights in the opposite order (RULER).",
}


class OverallRow(NamedTuple):
    """Hold one method over all tasks of a model.

    Attributes:
        method: The method with its parameters.
        kind: What kind of method it is.
        mean_rank: Mean of its ranks; None where it misses a task.
        share: Mean over tasks of the mean over lengths of its scores, as shares of what `origin` scores within the
            training length; None where it misses a length of a task.
        towards_longer: The same with weights 1, 2, ... n for the lengths, the shortest first.
        towards_shorter: The same with the weights n ... 2, 1.
        missing: The cells that it misses, such as "keys at 16k".
    """

    method: str
    kind: str
    mean_rank: float | None
    share: float | None
    towards_longer: float | None
    towards_shorter: float | None
    missing: tuple[str, ...]

    @property
    def shares(self) -> tuple[float | None, ...]:
        """The shares of `origin`: even, towards longer and towards shorter lengths."""
        return (self.share, self.towards_longer, self.towards_shorter)

    def texts(self, place: int) -> list[str]:
        """Return what stands in the columns of `OVERALL_COLUMNS`.

        Args:
            place: Of the row, from 1.
        """
        without = f" (without {', '.join(self.missing)})" if self.missing else ""
        rank = "" if self.mean_rank is None else f"{self.mean_rank:.1f}"
        shares = ("" if share is None else f"{100 * share:.1f} %" for share in self.shares)
        return ["" if self.missing else str(place), self.method + without, rank, *shares]


class OverallTable(NamedTuple):
    """Hold the overall table of a model.

    Attributes:
        model: The model.
        tasks: Its tasks that are ranked.
        without_share: Those of which no share can be told, as `origin` scores nothing within the training length or
            was not measured there.
        rows: The methods, the best share first, those that miss something last.
    """

    model: str
    tasks: list[str]
    without_share: list[str]
    rows: list[OverallRow]


def overall_tables(entries: Sequence[Entry]) -> Iterator[OverallTable]:
    """Yield the overall table of each model with several tasks whose scores are better the larger they are.

    Nothing is imputed: a mean over tasks and lengths that not all methods have would compare other things.

    Args:
        entries: Of any models and tasks, as `rank` returns them.

    Source:
        RULER, arXiv 2404.06654, section 4, for the means weighted by length.
    """
    scored = sorted((entry for entry in entries if entry.higher_is_better), key=lambda entry: (entry.model, entry.task))
    for model, group in groupby(scored, key=lambda entry: entry.model):
        boards = {task: list(own) for task, own in groupby(group, key=lambda entry: entry.task)}
        if len(boards) > 1:
            yield _table(model, boards)


def _table(model: str, boards: Mapping[str, Sequence[Entry]]) -> OverallTable:
    methods = {entry.method: entry.kind for own in boards.values() for entry in own}
    without = [task for task, own in boards.items() if not _reference(own, own[0])]
    rows = [_row(method, kind, boards) for method, kind in methods.items()]
    rows.sort(key=lambda row: (row.share is None, -(row.share or 0.0), row.mean_rank or len(methods), row.method))
    return OverallTable(model, list(boards), without, rows)


def _row(method: str, kind: str, boards: Mapping[str, Sequence[Entry]]) -> OverallRow:
    ranks: list[int] = []
    shares: list[list[float]] = []
    missing: list[str] = []
    for task, entries in boards.items():
        own = next((entry for entry in entries if entry.method == method), None)
        if own is None:
            missing.append(task)
            continue
        ranks.append(own.rank)
        lengths = sorted({length for entry in entries for length in (*entry.lengths, *entry.out_of_memory)})
        failed = [length for length in lengths if length not in own.lengths]
        missing += [
            f"{task} at {length_label(length)}{' (OOM)' if length in own.out_of_memory else ''}" for length in failed
        ]
        if reference := _reference(entries, own):
            shares.append([point.value / reference for point in own.points])

    def mean(rising: int) -> float | None:
        if missing or not shares:
            return None
        return fmean(_weighted(values, rising) for values in shares)

    mean_rank = fmean(ranks) if len(ranks) == len(boards) else None
    return OverallRow(method, kind, mean_rank, mean(0), mean(1), mean(-1), tuple(missing))


def _weighted(values: Sequence[float], rising: int) -> float:
    """Return the mean of values by length: even for 0, with weights rising by 1 per length for 1, falling for -1."""
    places = range(1, len(values) + 1)
    weights = {0: [1] * len(values), 1: list(places), -1: list(places)[::-1]}[rising]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def _reference(entries: Sequence[Entry], entry: Entry) -> float | None:
    """Return what `origin` scores beside an entry within the training length; None where that is unknown or 0."""
    origin = baseline_of(entries, entry)
    if origin is None or origin.train_length is None:
        return None
    within = [point.value for point in origin.points if point.length <= origin.train_length]
    return fmean(within) or None if within else None
