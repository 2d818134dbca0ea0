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
    """

    text: str = ""
    value: float | str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    kind: str = ""


class Column(NamedTuple):
    """Hold a title, what it means in a sentence or two, and the cells by rank."""

    title: str
    about: str
    cells: list[Cell]


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
            Column(
                "#", "Place: the longer effective length first, then the higher mean.", list(map(_rank, self.changes))
            ),
            column("method", "With the parameters that were set.", _method),
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
                "commit",
                "Of mesa-lm, which measured it; edited: with changes that no commit holds.",
                lambda entry: Cell(", ".join(entry.commits), ", ".join(entry.commits)),
            ),
        ]
        if any(change.before for change in self.changes):
            about = "Since the run compared with, over the lengths that both have; means tested with Holm's correction."
            found.append(Column("change", about, list(map(_change, self.changes))))
        return [column for column in found if any(cell.text or cell.warnings for cell in column.cells)]


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
    return Cell(entry.method, entry.method, notes, warnings)


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
