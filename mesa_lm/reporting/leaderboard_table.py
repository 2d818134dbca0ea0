"""The tables of a leaderboard, one per model and task: columns of texts, as every format shows them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from mesa_lm.lengths import length_label
from mesa_lm.reporting.changes import Change
from mesa_lm.reporting.costs import COSTS, RANKED_COSTS
from mesa_lm.reporting.ranking import Entry


class Cell(NamedTuple):
    """Hold what stands in one cell.

    Attributes:
        text: What it says; empty where there is nothing to say.
        value: What its column is sorted by; "" comes last.
        notes: Said below it in small letters.
        warnings: Said below these, as something that went wrong.
        kind: Of a change, such as "worse"; of other cells empty.
        heat: From 0, the worst, to 1, the best, of a value at one length; None elsewhere.
    """

    text: str = ""
    value: float | str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    kind: str = ""
    heat: float | None = None


class Column(NamedTuple):
    """Hold one column.

    Attributes:
        title: Its title.
        about: What it means, in a sentence or two.
        cells: Its cells by rank.
        is_length: Whether it is the column of a length.
        is_first_beyond: Whether it is that of the first length beyond the training length.
    """

    title: str
    about: str
    cells: list[Cell]
    is_length: bool = False
    is_first_beyond: bool = False


class Board(NamedTuple):
    """Hold the table of one model and task.

    Attributes:
        model: The model.
        task: The task group.
        changes: The entries with what changed, in the order of their ranks, then those that are gone.
    """

    model: str
    task: str
    changes: list[Change]

    @property
    def metric(self) -> str:
        """Name of the ranking metric."""
        return self.changes[0].entry.metric

    @property
    def lengths(self) -> list[int]:
        """Every length that an entry has, or ran out of memory at."""
        entries = [change.entry for change in self.changes]
        return sorted({length for entry in entries for length in (*entry.lengths, *entry.out_of_memory)})

    @property
    def columns(self) -> list[Column]:
        """The columns that have something to say."""
        entries = [change.entry for change in self.changes]

        def column(title: str, about: str, cell: Callable[[Entry], Cell]) -> Column:
            return Column(title, about, list(map(cell, entries)))

        found = [
            Column("#", _PLACE, list(map(_rank, self.changes))),
            column("method", "With the parameters that differ from its defaults.", _method),
            column(KIND, KIND_MEANING, lambda entry: Cell(entry.kind, entry.kind)),
            column(
                "effective length",
                "The longest measured length up to which the metric stays above 85% of its mean within the training "
                "length T. Nothing is claimed beyond a length that was not measured.",
                _effective_length,
            ),
            column(
                f"mean {self.metric}",
                "Over the lengths measured, with its 95% interval. Methods of the same effective length are ordered "
                "by the mean over the lengths that they all have.",
                _mean,
            ),
            *self._length_columns(entries),
            column("within T", _WITHIN_T, _price),
            column(
                "p to best",
                "How likely a difference to the first method is by chance, on the same samples of all lengths, after "
                "Holm's correction for the number of methods.",
                lambda entry: Cell() if entry.p_best is None else Cell(f"{entry.p_best:.2g}", entry.p_best),
            ),
            column(
                "NLL",
                "Mean per token, over the lengths of the perplexity task that all methods have.",
                lambda entry: Cell() if entry.loss is None else Cell(f"{entry.loss:.3f}", entry.loss),
            ),
            *(_cost_column(name, entries) for name in RANKED_COSTS),
            column(
                COMMIT,
                "Of mesa-lm, which measured it; edited: with changes that no commit holds.",
                lambda entry: Cell(found := entry.provenance.get(COMMIT, ""), found),
            ),
        ]
        if any(change.before for change in self.changes):
            about = "Since the run compared with, over the lengths that both have; means tested with Holm's correction."
            found.append(Column("change", about, list(map(_change, self.changes))))
        return [column for column in found if any(cell.text or cell.warnings for cell in column.cells)]

    def _length_columns(self, entries: Sequence[Entry]) -> list[Column]:
        """Return a column per length; scores between 0 and 1 are shaded by that range, others by their own."""
        values = [point.value for entry in entries for point in entry.points]
        worst, best = (0.0, 1.0) if min(values) >= 0 and max(values) <= 1 else (min(values), max(values))
        if not entries[0].higher_is_better:
            worst, best = max(values), min(values)
        train_length = entries[0].train_length
        first_beyond = min((length for length in self.lengths if train_length and length > train_length), default=None)
        columns = []
        for length in self.lengths:
            is_beyond = first_beyond is not None and length >= first_beyond
            place = "" if train_length is None else f", {'beyond' if is_beyond else 'within'} T"
            about = f"{self.metric} at {length} tokens{place}."
            cells = [_at_length(entry, length, worst, best) for entry in entries]
            columns.append(Column(length_label(length), about, cells, True, length == first_beyond))
        return columns


KIND, COMMIT = "kind", "commit"
KIND_MEANING = (
    "What the method changes: the frequencies of positions (scaling), where keys stand (remapping), a prompt's "
    "attention, cut into chunks (chunked), or which keys are seen, by their place (sparse) or by the query (retrieval)."
)
_PLACE = "Place: the longer effective length first, then the higher mean."
_WITHIN_T = (
    "The change against origin over the lengths up to T, with its 95% interval on the same samples: what the method "
    "costs where the untouched model works."
)


def boards(changes: Sequence[Change]) -> Iterator[Board]:
    """Yield the table of each model and task."""

    def place(change: Change) -> tuple[str, str]:
        return change.entry.model, change.entry.task

    for (model, task), group in groupby(sorted(changes, key=place), key=place):
        yield Board(model, task, list(group))


def _rank(change: Change) -> Cell:
    return Cell(str(change.entry.rank), change.entry.rank) if change.now else Cell("gone", kind="gone")


def _method(entry: Entry) -> Cell:
    notes, warnings = (
        (f"{what} at {', '.join(map(length_label, lengths))}",) if lengths else ()
        for what, lengths in (("not measured", entry.missing), ("OOM", entry.out_of_memory))
    )
    calibrated = ("calibrated on this model",) if entry.is_calibrated else ()
    return Cell(entry.method, entry.method, (*calibrated, *notes), warnings)


def _at_length(entry: Entry, length: int, worst: float, best: float) -> Cell:
    """Return what stands at a length: the value, whose shade goes from the worst to the best of the table."""
    if length in entry.out_of_memory:
        return Cell(kind="failed", text="OOM")
    value = next((point.value for point in entry.points if point.length == length), None)
    if value is None:
        return Cell()
    heat = (value - worst) / (best - worst) if best != worst else 1.0
    digits = 0 if abs(value) >= 100 else 2 if entry.higher_is_better else 3
    return Cell(f"{value:.{digits}f}", value, heat=round(heat, 3))


def _price(entry: Entry) -> Cell:
    found = entry.price
    if found is None:
        return Cell()
    notes = () if found.interval is None else (f"{found.interval.low:+.3f} to {found.interval.high:+.3f}",)
    surely = found.interval is not None and (found.interval.low > 0 or found.interval.high < 0)
    kind = "" if not surely else "better" if (found.difference > 0) == entry.higher_is_better else "worse"
    shown = round(found.difference, 3) + 0.0  # no minus before a zero
    return Cell(f"{shown:+.3f}", found.difference, notes, kind=kind)


def _effective_length(entry: Entry) -> Cell:
    length = entry.effective_length
    if length is None:
        return Cell("none", 0)
    return Cell(length_label(length), length, ("longest measured",) if length == entry.lengths[-1] else ())


def _mean(entry: Entry) -> Cell:
    interval = entry.mean_interval
    notes = () if interval is None else (f"{interval.low:.3f} to {interval.high:.3f}",)
    return Cell(f"{entry.mean:.3f}", entry.mean, notes)


def _cost_column(name: str, entries: Sequence[Entry]) -> Column:
    """Return the column of a cost, all of it in one unit; empty where no entry has the cost."""
    cost, having = COSTS[name], [entry for entry in entries if name in entry.costs]
    if not having:
        return Column(str(cost.column), "", [])
    unit = cost.common_unit([entry.costs[name] for entry in having])
    lengths = {entry.cost_length for entry in having if entry.cost_length is not None}
    at = f" at {length_label(*lengths)}" if len(lengths) == 1 else ""

    def cell(entry: Entry) -> Cell:
        failed = entry.cost_out_of_memory
        warnings = () if failed is None else (f"OOM at {length_label(failed)}",)
        if name not in entry.costs:
            return Cell(warnings=warnings)
        told = entry.cost_length is not None and not at
        notes = (f"at {length_label(entry.cost_length)}",) if told and entry.cost_length else ()
        return Cell(unit.text(entry.costs[name]), entry.costs[name], notes, warnings)

    about = "Of a benchmark, else as the sweep's workers measured it, at the longest length that all methods finished."
    return Column(f"{cost.column}{at} ({unit.name})", about, list(map(cell, entries)))


def _change(change: Change) -> Cell:
    difference = () if change.difference is None else (f"{change.difference:+.3f}",)
    return Cell(change.kind, change.kind, (*difference, *change.reasons), kind=change.kind)
