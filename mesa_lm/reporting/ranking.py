"""Rank the methods of each model and task by how far they carry it."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mesa_lm.reporting.comparison import paired
from mesa_lm.reporting.results import Cell, Interval, interval, label_length
from mesa_lm.reporting.samples import has_samples, scores

KEPT = 0.85  # share of its score within T above which a method counts as working
# The metric that ranks, of those a task has; else the first whose larger values are better.
PREFERRED = ("acc", "exact_match", "score", "f1")
LOSS = "nll"
COSTS = ("peak_bytes", "decode_s", "prefill_s", "sample_s")
OUT_OF_MEMORY = "oom"  # 1 where a benchmark ran out of memory


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
        missing: Lengths that others of the same model and task have and this one has not, without those below.
        out_of_memory: Lengths at which a sweep ran out of memory.
        losses: The NLL per token by length, of a task that measures it; empty where none does.
        loss: Its mean over the lengths that all methods of the model have; None where none has it.
        costs: Peak memory in bytes and times in seconds of a benchmark, else of the sweep that ran the task, at the
            longest length that it has of all methods of the model; at the longest of this method where there is none.
        cost_length: That length in tokens.
        cost_out_of_memory: Shortest length at which the benchmark ran out of memory.
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
    out_of_memory: tuple[int, ...]
    losses: tuple[Cell, ...]
    loss: float | None
    costs: Mapping[str, float]
    cost_length: int | None
    cost_out_of_memory: int | None
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
        The entries by model, task and rank. Longer effective length comes first, then the higher mean over the
        lengths that all methods of that effective length have.
    """
    ranked: list[Entry] = []
    scored = [cell for cell in cells if cell.higher_is_better and not _is_cost(cell)]
    for _, group in groupby(sorted(scored, key=_board), key=_board):
        members = list(group)
        metric = _ranking_metric(members)
        members = [cell for cell in members if cell.metric == metric]
        lengths = {cell.length for cell in members}
        of_model = [cell for cell in cells if cell.model == members[0].model]
        losses, costs = _first_task(of_model, [LOSS]), _costs(of_model, members[0].task)
        entries = [
            _entry([cell for cell in members if cell.method == method], lengths, losses, costs)
            for method in dict.fromkeys(cell.method for cell in members)
        ]
        entries = _placed(entries)
        ranked += [replace(entry, p_best=p) for entry, p in zip(entries, _against_best(entries), strict=True)]
    return ranked


def effective_length(cells: Sequence[Cell], unmeasured: Iterable[int] = ()) -> int | None:
    """Return the longest length up to which a metric stays above 85% of its value within the training length.

    Args:
        cells: One metric of one method by length, shortest first.
        unmeasured: Lengths that should have been measured. Beyond the first of them past the shortest measured one
            nothing is claimed.

    Returns:
        A measured length; None where nothing was measured within T, or T is unknown, or the value there is 0.
    """
    train_length = cells[0].train_length
    within = [cell.value for cell in cells if train_length is not None and cell.length <= train_length]
    if not within:
        return None
    least = KEPT * sum(within) / len(within)
    gap = min((length for length in unmeasured if length > cells[0].length), default=math.inf)
    reached = None
    for cell in cells:
        if cell.value <= least or cell.length > gap:
            break
        reached = cell.length
    return reached


def mean(cells: Sequence[Cell], lengths: Iterable[int] | None = None) -> float | None:
    """Return the mean over lengths, over all or over given ones; None where none of those was measured."""
    chosen = None if lengths is None else set(lengths)
    values = [cell.value for cell in cells if chosen is None or cell.length in chosen]
    return sum(values) / len(values) if values else None


def pooled(cells: Sequence[Cell]) -> dict[str, float] | None:
    """Return the scores of all samples of all lengths, None where some were not logged."""
    if not all(map(has_samples, cells)):
        return None
    return {f"{cell.name}/{name}": score for cell in cells for name, score in scores(cell).items()}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number, so that 0.05 holds for the chance of any false alarm among them.

    Args:
        p_values: Of one family of tests; None where there was none.

    Returns:
        Those after correction, in the same order.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    known = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for done, (p_value, place) in enumerate(known):
        highest = max(highest, min(1.0, p_value * (len(known) - done)))
        corrected[place] = highest
    return corrected


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


def _entry(cells: Sequence[Cell], lengths: set[int], losses: Sequence[Cell], costs: Sequence[Cell]) -> Entry:
    """Return a method's entry, not yet ranked, from the model's NLL and costs, those of other methods included."""
    method = cells[0].method
    own_losses = [cell for cell in losses if cell.method == method]
    own_costs = [cell for cell in costs if cell.method == method and cell.metric in COSTS]
    failed = [cell.length for cell in costs if (cell.method, cell.metric) == (method, OUT_OF_MEMORY) and cell.value]
    cost_length = max(_shared_lengths([cell for cell in costs if cell.metric in COSTS]), default=None)
    if cost_length is None:
        cost_length = max((cell.length for cell in own_costs), default=None)
    measured = {cell.length for cell in cells}
    out_of_memory = _out_of_memory(cells) - measured
    missing = lengths - measured - out_of_memory
    shared_loss = mean(own_losses, _shared_lengths(losses))
    return Entry(
        model=cells[0].model,
        method=method,
        task=cells[0].task,
        cells=tuple(cells),
        effective_length=effective_length(cells, missing | out_of_memory),
        mean=sum(cell.value for cell in cells) / len(cells),
        mean_interval=mean_interval(cells),
        missing=tuple(sorted(missing)),
        out_of_memory=tuple(sorted(out_of_memory)),
        losses=tuple(own_losses),
        loss=mean(own_losses) if shared_loss is None else shared_loss,
        costs={cell.metric: cell.value for cell in own_costs if cell.length == cost_length},
        cost_length=cost_length if own_costs else None,
        cost_out_of_memory=min(failed, default=None),
    )


def _placed(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries in their order, with their ranks."""
    keys: dict[str, tuple[int, float]] = {}
    for entry in entries:
        equals = [other for other in entries if other.effective_length == entry.effective_length]
        shared = mean(entry.cells, _shared_lengths([cell for other in equals for cell in other.cells]))
        keys[entry.method] = (entry.effective_length or 0, entry.mean if shared is None else shared)
    ordered = sorted(entries, key=lambda entry: (*(-part for part in keys[entry.method]), entry.method))
    reached = [keys[entry.method] for entry in ordered]
    return [replace(entry, rank=reached.index(keys[entry.method]) + 1) for entry in ordered]


def _first_task(cells: Sequence[Cell], metrics: Sequence[str]) -> list[Cell]:
    """Return the cells of some metrics, of the first task that has one: numbers of two tasks cannot be compared."""
    chosen = [cell for cell in cells if cell.metric in metrics]
    first = min((cell.task for cell in chosen), default=None)
    return [cell for cell in chosen if cell.task == first]


def _costs(cells: Sequence[Cell], task: str) -> list[Cell]:
    """Return the costs to show for a task: of a benchmark, else what the sweep that ran it measured."""
    of_sweeps = {cell.task for cell in cells if cell.metric == "sample_s"}
    bench = [cell for cell in cells if cell.task not in of_sweeps]
    own = [cell for cell in cells if cell.task == task]
    return _first_task(bench, [*COSTS, OUT_OF_MEMORY]) or _first_task(own, COSTS)


def _shared_lengths(cells: Sequence[Cell]) -> set[int]:
    """Return the lengths that all methods have."""
    by_method: dict[str, set[int]] = {}
    for cell in cells:
        by_method.setdefault(cell.method, set()).add(cell.length)
    return set.intersection(*by_method.values()) if by_method else set()


def _out_of_memory(cells: Sequence[Cell]) -> set[int]:
    """Return the lengths at which the sweep that wrote some results ran out of memory."""
    found = set()
    for source in {cell.source for cell in cells}:
        sweep = json.loads(source.read_text(encoding="utf-8")).get("sweep") or {}
        prefix = f"{cells[0].task}_"
        for name in sweep.get("out_of_memory") or ():
            length = label_length(name.removeprefix(prefix)) if name.startswith(prefix) else None
            found |= {length} if length is not None else set()
    return found


def _against_best(entries: Sequence[Entry]) -> list[float | None]:
    """Return each entry's p-value against the first."""
    best = pooled(entries[0].cells)
    found: list[float | None] = [None]
    for entry in entries[1:]:
        other = pooled(entry.cells) if best else None
        common = best.keys() & other.keys() if best and other else set()
        if best and other and common:
            found.append(paired({name: best[name] for name in common}, {name: other[name] for name in common})[1])
        else:
            found.append(None)
    return holm(found)


def _ranking_metric(cells: Sequence[Cell]) -> str:
    known = dict.fromkeys(cell.metric for cell in cells)
    return next((metric for metric in PREFERRED if metric in known), next(iter(known)))


def _board(cell: Cell) -> tuple[str, str]:
    return cell.model, cell.task


def _is_cost(cell: Cell) -> bool:
    return cell.metric in COSTS or cell.metric.endswith("_per_s")
