"""Rank the methods of each model and task by how far they carry it."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Any

import pandas as pd

from mesa_lm.lengths import length_label
from mesa_lm.reporting.costs import OOM_METRIC, RANKED_COSTS, is_cost
from mesa_lm.reporting.results import Results
from mesa_lm.reporting.samples import Scores, common_p_value, logged_scores
from mesa_lm.reporting.statistics import Interval, holm, mean_interval

KEPT = 0.85  # share of its score within T above which a method counts as working
# The metric that ranks, of those a task has; else the first whose larger values are better, or else smaller ones.
PREFERRED = ("acc", "exact_match", "score", "f1")
LOSS = "nll"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """Hold one method of one model on one task.

    Attributes:
        model: The model.
        method: The method with the parameters that were set.
        task: The task group.
        points: The rows of the ranking metric, shortest length first.
        rank: Place among the methods of the same model and task, from 1; equals share one.
        effective_length: Longest length up to which the metric keeps 85% of its value within T; see
            `effective_length`. None where it fails within T already, or where nothing was measured there.
        mean: Mean of the metric over the lengths.
        mean_interval: Its 95% interval; None where a length has none.
        missing: Lengths that others of the same model and task have and this one has not, without those below.
        out_of_memory: Lengths at which a sweep ran out of memory.
        losses: The rows of the NLL per token, of a task that measures it; empty where none does.
        loss: Its mean over the lengths that all methods of the model have; None where none has it.
        costs: Peak memory in bytes and times in seconds of a benchmark, else of the sweep that ran the task, at the
            longest length that it has of all methods of the model; at the longest of this method where there is none.
        cost_length: That length in tokens.
        cost_out_of_memory: Shortest length at which the benchmark ran out of memory.
        p_best: Probability of a difference to the first method that large by chance, over the samples of all lengths,
            after Holm's correction for the number of methods; None for the first, and where samples were not logged.
        scores: What the samples of each length contribute, by the name of the task, where that was logged.
        problems: What is wrong with damaged files of samples.
        commits: Of mesa-lm, of all that was measured, see `ResultsFile.commit`.
    """

    model: str
    method: str
    task: str
    points: pd.DataFrame
    rank: int = 0
    effective_length: int | None
    mean: float
    mean_interval: Interval | None
    missing: tuple[int, ...]
    out_of_memory: tuple[int, ...]
    losses: pd.DataFrame
    loss: float | None
    costs: Mapping[str, float]
    cost_length: int | None
    cost_out_of_memory: int | None
    p_best: float | None = None
    scores: Mapping[str, Scores]
    problems: tuple[str, ...]
    commits: tuple[str, ...]

    def scores_at(self, lengths: Container[int]) -> dict[str, Scores | None]:
        """Return what samples contribute at some lengths, by the name of the task; None where it was not logged."""
        named = zip(self.points.name, self.points.length, strict=True)
        return {name: self.scores.get(name) for name, length in named if length in lengths}

    @property
    def metric(self) -> str:
        """Name of the ranking metric."""
        return str(self.points.metric.iloc[0])

    @property
    def higher_is_better(self) -> bool:
        """Direction of the ranking metric."""
        return bool(self.points.higher_is_better.iloc[0])

    @property
    def train_length(self) -> int | None:
        """Training length of the model in tokens; None where unknown."""
        found = self.points.train_length.iloc[0]
        return None if pd.isna(found) else int(found)

    @property
    def lengths(self) -> list[int]:
        """The measured lengths, shortest first."""
        return self.points.length.tolist()

    def row(self) -> dict[str, Any]:
        """Return the entry as flat values, for tables."""
        low, high = self.mean_interval or (None, None)
        return {
            "model": self.model,
            "task": self.task,
            "rank": self.rank,
            "method": self.method,
            "metric": self.metric,
            "effective_length": self.effective_length,
            "mean": self.mean,
            "mean_low": low,
            "mean_high": high,
            "nll": self.loss,
            "p_best": self.p_best,
            **{cost: self.costs.get(cost) for cost in RANKED_COSTS},
            "cost_length": self.cost_length,
            "out_of_memory": ", ".join(map(length_label, self.out_of_memory)),
            "commit": ", ".join(self.commits),
        }


def rank(results: Results) -> list[Entry]:
    """Rank the methods of every model and task.

    Args:
        results: Of any models, methods and tasks.

    Returns:
        The entries by model, task and rank. Longer effective length comes first, then the better mean over the
        lengths that all methods of that effective length have. Tasks that measure losses alone are ranked where a
        model has no others.
    """
    ranked: list[Entry] = []
    for _, of_model in results.table.groupby("model"):
        losses = _marked(_of_first_task(of_model, [LOSS]))
        scored = of_model[of_model.higher_is_better.notna() & ~of_model.metric.map(_is_no_score)]
        if scored.higher_is_better.any():
            scored = scored[scored.higher_is_better]
        else:  # nothing but losses: they rank
            losses = losses.head(0)
        for task, board in scored.groupby("task"):
            names = [*PREFERRED, LOSS, board.metric.iloc[0]]
            metric = next(name for name in names if name in set(board.metric))
            points, costs = board[board.metric == metric], _costs(of_model, str(task))
            lengths = set(points.length)
            entries = [
                _entry(results, own, lengths, losses[losses.method == method], costs[costs.method == method])
                for method, own in points.groupby("method")
            ]
            ranked += _against_best(_placed(entries))
    return ranked


def _is_no_score(metric: str) -> bool:
    return metric == OOM_METRIC or is_cost(metric)


def effective_length(points: pd.DataFrame, unmeasured: Iterable[int] = ()) -> int | None:
    """Return the longest length up to which a metric keeps 85% of its value within the training length.

    A score stays above 85% of it; of a loss, where less is better, the value within T stays above 85% of the loss.

    Args:
        points: One metric of one method, shortest length first.
        unmeasured: Lengths that should have been measured. Beyond the first of them past the shortest measured one
            nothing is claimed.

    Returns:
        A measured length; None where nothing was measured within T, or T is unknown, or the value there is 0.
    """
    shortest = points.iloc[0]
    within = points[(points.length <= shortest.train_length).fillna(False)]
    if within.empty:
        return None
    gap = min((length for length in unmeasured if length > shortest.length), default=points.length.max())
    at_start = fmean(within.value)
    kept = points.value > KEPT * at_start if shortest.higher_is_better else points.value * KEPT < at_start
    works = kept & (points.length <= gap)
    reached = points.length[works.cummin()]
    return None if reached.empty else int(reached.max())


def unable_tasks(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield, for each task on which no method of a model scores within the training length, that this is so.

    Args:
        entries: By model and task, as `rank` returns them.
    """
    for (model, task), group in groupby(entries, key=lambda entry: (entry.model, entry.task)):
        members = list(group)
        first = members[0]
        if first.train_length is None or not first.higher_is_better:
            continue
        points = pd.concat([entry.points for entry in members])
        within = points.value[points.length <= first.train_length]
        if len(within) and not within.any():
            yield unable_text(model, task, first.metric, first.train_length)


def unable_text(model: str, task: str, metric: str, train_length: int) -> str:
    """Return what is to be said of a model that scores 0 on a task within its training length."""
    return (
        f"{model} cannot do {task} within its training length of {length_label(train_length)} tokens ({metric} is 0): "
        "longer inputs say nothing of the methods"
    )


def mean_over(points: pd.DataFrame) -> float | None:
    """Return the mean over lengths; None where there are none."""
    return None if points.empty else fmean(points.value)


def _entry(
    results: Results, points: pd.DataFrame, lengths: set[int], losses: pd.DataFrame, costs: pd.DataFrame
) -> Entry:
    """Return a method's entry, not yet ranked.

    Args:
        results: Everything.
        points: The method's rows of the ranking metric.
        lengths: Those of all methods.
        losses: Its NLL, `_marked` among those of all methods.
        costs: Its costs, marked so too, and where it ran out of memory.
    """
    first = points.iloc[0]
    measured = set(points.length)
    failed = {n for path in set(points.source) for n in results.files[path].out_of_memory(first.task)} - measured
    missing = lengths - measured - failed
    overflowed = costs.length[(costs.metric == OOM_METRIC) & (costs.value > 0)]
    finished = _comparable(costs[costs.metric != OOM_METRIC])
    cost_length = max(finished.length, default=None)
    shown = finished[finished.length == cost_length]
    scores, problems = logged_scores(points)
    return Entry(
        model=first.model,
        method=first.method,
        task=first.task,
        points=points,
        effective_length=effective_length(points, missing | failed),
        mean=fmean(points.value),
        mean_interval=mean_interval(points),
        missing=tuple(sorted(missing)),
        out_of_memory=tuple(sorted(failed)),
        losses=losses,
        loss=mean_over(_comparable(losses)),
        costs=dict(zip(shown.metric, shown.value, strict=True)),
        cost_length=cost_length,
        cost_out_of_memory=min(overflowed, default=None),
        scores=scores,
        problems=problems,
        commits=tuple(sorted({commit for path in set(points.source) if (commit := results.files[path].commit)})),
    )


def _placed(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries in their order, with their ranks."""
    keys: dict[str, tuple[int, float]] = {}
    for entry in entries:
        equals = [other.lengths for other in entries if other.effective_length == entry.effective_length]
        common = entry.points[entry.points.length.isin(set.intersection(*map(set, equals)))]
        mean = entry.mean if common.empty else fmean(common.value)
        keys[entry.method] = (entry.effective_length or 0, mean if entry.higher_is_better else -mean)
    ordered = sorted(entries, key=lambda entry: (*(-part for part in keys[entry.method]), entry.method))
    reached = [keys[entry.method] for entry in ordered]
    return [replace(entry, rank=reached.index(keys[entry.method]) + 1) for entry in ordered]


def _against_best(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with their p-values against the first."""
    best = entries[0]
    p_values = [None, *(p_value_of_samples(best, entry) for entry in entries[1:])]
    return [replace(entry, p_best=p_value) for entry, p_value in zip(entries, holm(p_values), strict=True)]


def p_value_of_samples(first: Entry, second: Entry) -> float | None:
    """Return how likely the difference of two entries is by chance, over the common samples of common lengths.

    Returns:
        The probability; None where samples of a common length were not logged, or none are common.
    """
    common = set(first.lengths) & set(second.lengths)
    return common_p_value(*(entry.scores_at(common) for entry in (first, second)))


def _of_first_task(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the rows of some metrics, of the first task that has one: numbers of two tasks cannot be compared."""
    chosen = table[table.metric.isin(metrics)]
    return chosen[chosen.task.eq(chosen.task.min())]


def _costs(of_model: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return the costs to show for a task, marked: of a benchmark, else what the sweep that ran it measured."""
    of_sweeps = set(of_model.task[of_model.metric == "sample_s"])
    benched = _of_first_task(of_model[~of_model.task.isin(of_sweeps)], [*RANKED_COSTS, OOM_METRIC])
    return _marked(_of_first_task(of_model[of_model.task == task], RANKED_COSTS) if benched.empty else benched)


def _marked(table: pd.DataFrame) -> pd.DataFrame:
    """Mark in `is_shared` the rows of the lengths that all methods finished."""
    finished = table[table.metric != OOM_METRIC]
    have = set(zip(finished.method, finished.length, strict=True))
    shared = [n for n in set(finished.length) if all((method, n) in have for method in set(finished.method))]
    return table.assign(is_shared=table.length.isin(shared))


def _comparable(own: pd.DataFrame) -> pd.DataFrame:
    """Return the marked rows of one method, or all where none is marked."""
    return own[own.is_shared] if own.is_shared.any() else own
