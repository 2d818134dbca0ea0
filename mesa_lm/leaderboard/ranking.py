"""Rank the methods of each model and task by how far they carry it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mesa_lm.compare import paired
from mesa_lm.results import Cell, Interval, interval
from mesa_lm.samples import has_samples, scores

KEPT = 0.85  # share of its score within T above which a method counts as working
# The metric that ranks, of those a task has; else the first whose larger values are better.
PREFERRED = ("acc", "exact_match", "score", "f1")
LOSS = "nll"
COSTS = ("peak_bytes", "decode_s", "prefill_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Hold one method of one model on one task.

    Args:
        model: The model.
        method: The method with the parameters that were set.
        task: The task group.
        cells: The ranking metric by length, shortest first.
        rank: Place among the methods of the same model and task, from 1; equals share one.
        effective_length: Longest length up to which the metric stays above 85% of its value within T; None where it
            fails within T already, or where nothing was measured there.
        mean: Mean of the metric over the lengths.
        mean_interval: Its 95% interval; None where a length has none.
        missing: Lengths that others of the same model and task have and this one has not.
        loss: Mean NLL per token over the lengths of a task that measures it; None where none does.
        costs: Peak memory in bytes and times in seconds, at the longest length of a benchmark of this method.
        cost_length: That length in tokens.
        p_best: Probability of a difference to the first method that large by chance, over the samples of all lengths,
            after Holm's correction for the number of methods; None for the first, and where samples were not logged.
    """

    model: str
    method: str
    task: str
    cells: tuple[Cell, ...]
    rank: int = 0
    effective_length: int | None
    mean: float
    mean_interval: Interval | None
    missing: tuple[int, ...]
    loss: float | None
    costs: Mapping[str, float]
    cost_length: int | None
    p_best: float | None = None

    @property
    def metric(self) -> str:
        """Name of the ranking metric."""
        return self.cells[0].metric

    @property
    def train_length(self) -> int | None:
        """Training length of the model in tokens."""
        return self.cells[0].train_length


def rank(cells: Sequence[Cell]) -> list[Entry]:
    """Rank the methods of every model and task.

    Args:
        cells: Of any models, methods and tasks, in the order of `results.read`.

    Returns:
        The entries by model, task and rank. Longer effective length comes first, then the higher mean.
    """
    ranked: list[Entry] = []
    scored = [cell for cell in cells if cell.higher_is_better and not _is_cost(cell)]
    for _, group in groupby(sorted(scored, key=_board), key=_board):
        members = list(group)
        metric = _ranking_metric(members)
        members = [cell for cell in members if cell.metric == metric]
        lengths = {cell.length for cell in members}
        entries = [
            _entry([cell for cell in members if cell.method == method], lengths, cells)
            for method in dict.fromkeys(cell.method for cell in members)
        ]
        entries.sort(key=lambda entry: (-(entry.effective_length or 0), -entry.mean, entry.method))
        reached = [(entry.effective_length, entry.mean) for entry in entries]
        entries = [replace(entry, rank=reached.index(own) + 1) for entry, own in zip(entries, reached, strict=True)]
        ranked += [replace(entry, p_best=p) for entry, p in zip(entries, _against_best(entries), strict=True)]
    return ranked


def effective_length(cells: Sequence[Cell]) -> int | None:
    """Return the longest length up to which a metric stays above 85% of its value within the training length.

    Args:
        cells: One metric of one method by length, shortest first.

    Returns:
        A measured length; None where nothing was measured within T, or T is unknown, or the value there is 0.
    """
    train_length = cells[0].train_length
    within = [cell.value for cell in cells if train_length is not None and cell.length <= train_length]
    if not within:
        return None
    least = KEPT * sum(within) / len(within)
    reached = None
    for cell in cells:
        if cell.value <= least:
            break
        reached = cell.length
    return reached


def pooled(cells: Sequence[Cell]) -> dict[str, float] | None:
    """Return the scores of all samples of all lengths, None where some were not logged."""
    if not all(map(has_samples, cells)):
        return None
    return {f"{cell.name}/{name}": score for cell in cells for name, score in scores(cell).items()}


def mean_interval(cells: Sequence[Cell]) -> Interval | None:
    """Return the 95% interval of the mean over lengths, None where a length has none.

    Source:
        Zou and Donner 2008, Construction of confidence limits about effect measures: a general approach, which
        recovers the variances from each length's own interval.
    """
    bounds = [interval(cell) for cell in cells]
    mean = sum(cell.value for cell in cells) / len(cells)
    low, high = 0.0, 0.0
    for cell, bound in zip(cells, bounds, strict=True):
        if bound is None:
            return None
        low += (cell.value - bound.low) ** 2
        high += (bound.high - cell.value) ** 2
    return Interval(mean - math.sqrt(low) / len(cells), mean + math.sqrt(high) / len(cells))


def _entry(cells: Sequence[Cell], lengths: set[int], everything: Sequence[Cell]) -> Entry:
    """Return a method's entry, not yet ranked."""
    own = [cell for cell in everything if (cell.model, cell.method) == (cells[0].model, cells[0].method)]
    losses = [cell for cell in own if cell.metric == LOSS]
    losses = [cell for cell in losses if cell.task == losses[0].task]
    costs = [cell for cell in own if cell.metric in COSTS]
    longest = max((cell.length for cell in costs), default=None)
    return Entry(
        model=cells[0].model,
        method=cells[0].method,
        task=cells[0].task,
        cells=tuple(cells),
        effective_length=effective_length(cells),
        mean=sum(cell.value for cell in cells) / len(cells),
        mean_interval=mean_interval(cells),
        missing=tuple(sorted(lengths - {cell.length for cell in cells})),
        loss=sum(cell.value for cell in losses) / len(losses) if losses else None,
        costs={cell.metric: cell.value for cell in costs if cell.length == longest},
        cost_length=longest,
    )


def _against_best(entries: Sequence[Entry]) -> list[float | None]:
    """Return each entry's p-value against the first, by Holm 1979, A simple sequentially rejective test procedure."""
    best = pooled(entries[0].cells)
    found: dict[int, float] = {}
    for place, entry in enumerate(entries[1:], start=1):
        other = pooled(entry.cells) if best else None
        common = best.keys() & other.keys() if best and other else set()
        if best and other and common:
            _, p_value, _ = paired({name: best[name] for name in common}, {name: other[name] for name in common})
            found[place] = p_value
    corrected: dict[int, float] = {}
    highest = 0.0
    for done, place in enumerate(sorted(found, key=lambda place: found[place])):
        highest = max(highest, min(1.0, found[place] * (len(found) - done)))
        corrected[place] = highest
    return [corrected.get(place) for place in range(len(entries))]


def _ranking_metric(cells: Sequence[Cell]) -> str:
    known = dict.fromkeys(cell.metric for cell in cells)
    return next((metric for metric in PREFERRED if metric in known), next(iter(known)))


def _board(cell: Cell) -> tuple[str, str]:
    return cell.model, cell.task


def _is_cost(cell: Cell) -> bool:
    return cell.metric.endswith("_per_s")
