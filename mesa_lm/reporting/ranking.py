"""Rank the methods of each model and task by how far they carry it."""

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from statistics import fmean
from typing import Any, NamedTuple

from mesa_lm.lengths import length_label
from mesa_lm.methods.descriptions import kind_of
from mesa_lm.reporting.costs import OOM_METRIC, RANKED_COSTS, is_cost
from mesa_lm.reporting.lm_eval_files import Measurement
from mesa_lm.reporting.method_labels import name_of, source_of
from mesa_lm.reporting.price import Price, price
from mesa_lm.reporting.provenance import PARTS, column_name, row_provenance
from mesa_lm.reporting.results import Results, measurements
from mesa_lm.reporting.samples import Scores, common_p_value, logged_scores
from mesa_lm.reporting.statistics import Interval, holm, mean_interval

KEPT = 0.85  # share of its score within T above which a method counts as working
# The metric that ranks, of those a task has; else the first whose larger values are better, or else smaller ones.
PREFERRED = ("acc", "exact_match", "score", "f1")
LOSS = "nll"
BASELINE = "origin"
PRICE_COLUMNS = ("within_t_change", "within_t_low", "within_t_high", "within_t_p")


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
        price: The change against `origin` within the training length; None for `origin` and where it is not known.
        kind: What kind of method it is; see `mesa_lm.methods.base.Kind`.
        is_calibrated: Whether parameters were fitted to the model.
        provenance: Where the numbers come from, by what it is.
        scores: What the samples of each length contribute, by the name of the task, where that was logged.
        problems: What is wrong with damaged files of samples.
    """

    model: str
    method: str
    task: str
    points: Sequence[Measurement]
    rank: int = 0
    effective_length: int | None
    mean: float
    mean_interval: Interval | None
    missing: tuple[int, ...]
    out_of_memory: tuple[int, ...]
    losses: Sequence[Measurement]
    loss: float | None
    costs: Mapping[str, float]
    cost_length: int | None
    cost_out_of_memory: int | None
    p_best: float | None = None
    price: Price | None = None
    kind: str
    is_calibrated: bool
    provenance: Mapping[str, str]
    scores: Mapping[str, Scores]
    problems: tuple[str, ...]

    def scores_at(self, lengths: Container[int]) -> dict[str, Scores | None]:
        """Return what samples contribute at some lengths, by the name of the task; None where it was not logged."""
        return {point.name: self.scores.get(point.name) for point in self.points if point.length in lengths}

    @property
    def metric(self) -> str:
        """Name of the ranking metric."""
        return self.points[0].metric

    @property
    def higher_is_better(self) -> bool:
        """Direction of the ranking metric."""
        return bool(self.points[0].higher_is_better)

    @property
    def train_length(self) -> int | None:
        """Training length of the model in tokens; None where unknown."""
        return self.points[0].train_length

    @property
    def lengths(self) -> list[int]:
        """The measured lengths, shortest first."""
        return [point.length for point in self.points]

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
            **dict(zip(PRICE_COLUMNS, _flat(self.price), strict=True)),
            **{cost: self.costs.get(cost) for cost in RANKED_COSTS},
            "cost_length": self.cost_length,
            "out_of_memory": ", ".join(map(length_label, self.out_of_memory)),
            "kind": self.kind,
            "is_calibrated": self.is_calibrated,
            **{column_name(part): self.provenance.get(part) for part in PARTS},
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
    for of_model in _grouped(measurements(results.table), "model").values():
        known = [row for row in of_model if row.higher_is_better is not None and not _is_no_score(row.metric)]
        scored = [row for row in known if row.higher_is_better]
        # Where there is nothing but losses they rank.
        losses = _compared(_of_first_task(of_model, [LOSS]) if scored else [])
        benched, of_tasks = _benched(of_model), _grouped(of_model, "task")
        for task, board in _grouped(scored or known, "task").items():
            metrics = {row.metric for row in board}
            metric = next(name for name in (*PREFERRED, LOSS, board[0].metric) if name in metrics)
            points = [row for row in board if row.metric == metric]
            lengths = {point.length for point in points}
            costs = _compared(benched or _of_first_task(of_tasks[task], RANKED_COSTS))
            entries = [
                _entry(results, own, lengths, losses.get(method, _Compared()), costs.get(method, _Compared()))
                for method, own in _grouped(points, "method").items()
            ]
            ranked += _against_origin(_against_best(_placed(entries)))
    return ranked


def _is_no_score(metric: str) -> bool:
    return metric == OOM_METRIC or is_cost(metric)


def effective_length(points: Sequence[Measurement], unmeasured: Iterable[int] = ()) -> int | None:
    """Return the longest length up to which a metric keeps 85% of its value within the training length.

    A score stays above 85% of it; of a loss, where less is better, the value within T stays above 85% of the loss.

    Args:
        points: One metric of one method, shortest length first.
        unmeasured: Lengths that should have been measured. Beyond the first of them past the shortest measured one
            nothing is claimed.

    Returns:
        A measured length; None where nothing was measured within T, or T is unknown, or the value there is 0.
    """
    shortest = points[0]
    within = [point.value for point in points if shortest.train_length and point.length <= shortest.train_length]
    if not within:
        return None
    gap = min((length for length in unmeasured if length > shortest.length), default=points[-1].length)
    at_start = fmean(within)

    def works(point: Measurement) -> bool:
        kept = point.value > KEPT * at_start if shortest.higher_is_better else point.value * KEPT < at_start
        return kept and point.length <= gap

    return max((point.length for point in takewhile(works, points)), default=None)


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
        points = [point for entry in members for point in entry.points]
        within = [point.value for point in points if point.length <= first.train_length]
        if within and not any(within):
            yield unable_text(model, task, first.metric, first.train_length)


def unable_text(model: str, task: str, metric: str, train_length: int) -> str:
    """Return what is to be said of a model that scores 0 on a task within its training length."""
    return (
        f"{model} cannot do {task} within its training length of {length_label(train_length)} tokens ({metric} is 0): "
        "longer inputs say nothing of the methods"
    )


def mean_over(points: Collection[Measurement]) -> float | None:
    """Return the mean over lengths; None where there are none."""
    return fmean(point.value for point in points) if points else None


def _entry(
    results: Results, points: Sequence[Measurement], lengths: set[int], losses: "_Compared", costs: "_Compared"
) -> Entry:
    """Return a method's entry, not yet ranked.

    Args:
        results: Everything.
        points: The method's rows of the ranking metric.
        lengths: Those of all methods.
        losses: Its NLL.
        costs: Its costs, and where it ran out of memory.
    """
    first = points[0]
    runs = [results.files[path] for path in dict.fromkeys(point.source for point in points)]
    measured = {point.length for point in points}
    failed = {length for run in runs for length in run.out_of_memory(first.task)} - measured
    missing = lengths - measured - failed
    overflowed = [row.length for row in costs.own if row.metric == OOM_METRIC and row.value > 0]
    cost_length = max((row.length for row in costs.common), default=None)
    scores, problems = logged_scores(points)
    return Entry(
        model=first.model,
        method=first.method,
        task=first.task,
        points=points,
        effective_length=effective_length(points, missing | failed),
        mean=fmean(point.value for point in points),
        mean_interval=mean_interval(points),
        missing=tuple(sorted(missing)),
        out_of_memory=tuple(sorted(failed)),
        losses=losses.own,
        loss=mean_over(losses.common),
        costs={row.metric: row.value for row in costs.common if row.length == cost_length},
        cost_length=cost_length,
        cost_out_of_memory=min(overflowed, default=None),
        kind=kind_of(runs[0].method_name),
        is_calibrated=any(bool(run.mesa_lm.get("calibrated")) for run in runs),
        provenance=row_provenance(points, results.files),
        scores=scores,
        problems=problems,
    )


def _placed(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries in their order, with their ranks."""
    common: dict[int | None, set[int]] = {}  # lengths that all of an effective length have
    for entry in entries:
        common.setdefault(entry.effective_length, set(entry.lengths)).intersection_update(entry.lengths)
    keys: dict[str, tuple[int, float]] = {}
    for entry in entries:
        mean = mean_over([point for point in entry.points if point.length in common[entry.effective_length]])
        mean = entry.mean if mean is None else mean
        keys[entry.method] = (entry.effective_length or 0, mean if entry.higher_is_better else -mean)
    ordered = sorted(entries, key=lambda entry: (*(-part for part in keys[entry.method]), entry.method))
    reached = [keys[entry.method] for entry in ordered]
    return [replace(entry, rank=reached.index(keys[entry.method]) + 1) for entry in ordered]


def _against_best(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with their p-values against the first."""
    best = entries[0]
    p_values = [None, *(p_value_of_samples(best, entry) for entry in entries[1:])]
    return [replace(entry, p_best=p_value) for entry, p_value in zip(entries, holm(p_values), strict=True)]


def _against_origin(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries with what they cost within the training length."""
    found = []
    for entry in entries:
        origin = baseline_of(entries, entry)
        known = origin is not None and origin is not entry
        found.append(_priced(entry, origin) if known and origin is not None else entry)
    return found


def _priced(entry: Entry, origin: Entry) -> Entry:
    return replace(entry, price=price(entry.points, entry.scores, origin.points, origin.scores))


def baseline_of(entries: Sequence[Entry], entry: Entry) -> Entry | None:
    """Return the untouched model beside an entry: of the same source where several have it, else the first.

    Args:
        entries: All of the same model and task.
        entry: One of them.
    """
    found = [other for other in entries if name_of(other.method) == BASELINE]
    same = (other for other in found if source_of(other.method) == source_of(entry.method))
    return next(same, found[0] if found else None)


def _flat(found: Price | None) -> tuple[float | None, ...]:
    """Return a price as the values of `PRICE_COLUMNS`."""
    if found is None:
        return (None,) * len(PRICE_COLUMNS)
    return (found.difference, *(found.interval or (None, None)), found.p_value)


def p_value_of_samples(first: Entry, second: Entry) -> float | None:
    """Return how likely the difference of two entries is by chance, over the common samples of common lengths.

    Returns:
        The probability; None where samples of a common length were not logged, or none are common.
    """
    common = set(first.lengths) & set(second.lengths)
    return common_p_value(*(entry.scores_at(common) for entry in (first, second)))


def _grouped(rows: Iterable[Measurement], field: str) -> dict[str, list[Measurement]]:
    """Return the rows by their values of a field, these in order."""
    found: dict[str, list[Measurement]] = {}
    for row in rows:
        found.setdefault(getattr(row, field), []).append(row)
    return dict(sorted(found.items()))


def _of_first_task(rows: Iterable[Measurement], metrics: Collection[str]) -> list[Measurement]:
    """Return the rows of some metrics, of the first task that has one: numbers of two tasks cannot be compared."""
    chosen = _grouped((row for row in rows if row.metric in metrics), "task")
    return next(iter(chosen.values()), [])


def _benched(of_model: Sequence[Measurement]) -> list[Measurement]:
    """Return the costs of a benchmark, which go before what the sweep that ran a task measured of it."""
    of_sweeps = {row.task for row in of_model if row.metric == "sample_s"}
    return _of_first_task((row for row in of_model if row.task not in of_sweeps), [*RANKED_COSTS, OOM_METRIC])


class _Compared(NamedTuple):
    """Hold the rows of one method beside other methods.

    Attributes:
        own: All of them.
        common: Of those without `oom` the ones at the lengths that all methods finished; all where none is so.
    """

    own: Sequence[Measurement] = ()
    common: Sequence[Measurement] = ()


def _compared(rows: Iterable[Measurement]) -> dict[str, _Compared]:
    """Return rows by method."""
    by_method = _grouped(rows, "method")
    finished = {method: [row for row in own if row.metric != OOM_METRIC] for method, own in by_method.items()}
    lengths = [{row.length for row in own} for own in finished.values() if own]
    shared = set.intersection(*lengths) if lengths else set()
    return {
        method: _Compared(own, [row for row in finished[method] if row.length in shared] or finished[method])
        for method, own in by_method.items()
    }
