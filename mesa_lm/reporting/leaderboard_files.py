"""Write a leaderboard as a page for the browser, as Markdown, CSV or JSON."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.reporting.changes import Change
from mesa_lm.reporting.costs import COSTS, RANKED_COSTS, Cost
from mesa_lm.reporting.figure_style import figure_bytes
from mesa_lm.reporting.files import save_file
from mesa_lm.reporting.length_figure import length_figure
from mesa_lm.reporting.ranking import Entry
from mesa_lm.reporting.results import measurements
from mesa_lm.reporting.samples import Answer, answers

WRONG_ANSWERS = 3  # shown per method
ANSWER_LENGTH = 300  # characters of each
CSV_COLUMNS = [
    *("model", "task", "metric", "rank", "method", "effective_length", "mean", "p_best", "nll", *RANKED_COSTS),
    *("cost_length", "cost_out_of_memory", "change", "reasons", "length", "value", "low", "high", "samples", "status"),
]


class Board(NamedTuple):
    """Hold the table of one model and task.

    Attributes:
        model: The model.
        task: The task group.
        changes: The entries with what changed, in the order of their ranks, then those that are gone.
        lengths: Every length that one of them has, or ran out of memory at.
        costs: Every cost that one of them has.
    """

    model: str
    task: str
    changes: list[Change]
    lengths: list[int]
    costs: dict[str, Cost]

    @property
    def metric(self) -> str:
        """Name of the ranking metric."""
        return self.changes[0].entry.metric

    @property
    def figure(self) -> Markup:
        """The curves as inline SVG; its texts are drawn as paths, so nothing in it comes from outside."""
        shown = [change.now.points for change in self.changes if change.now]
        if not shown:
            return Markup()
        text = figure_bytes(length_figure(pd.concat(shown)), ".svg").decode()
        return Markup(text[text.index("<svg") :])


def render_html(changes: Sequence[Change]) -> str:
    """Return a page that holds everything it needs and loads nothing.

    Args:
        changes: The entries, with what changed.
    """
    environment = Environment(
        loader=PackageLoader("mesa_lm.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"tokens": length_label, "wrong_answers": _wrong_answers}
    return environment.get_template("leaderboard.html").render(
        boards=list(_boards(changes)),
        compared=any(change.before for change in changes),
        answer_length=ANSWER_LENGTH,
    )


def render_markdown(changes: Sequence[Change]) -> str:
    """Return one table per model and task."""
    compared = any(change.before for change in changes)
    parts = []
    for board in _boards(changes):
        rows = [_markdown_row(change, board, compared) for change in board.changes]
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts.append(f"## {board.model}: {board.task}, {board.metric}\n\n{table}")
    return "\n\n".join(parts) + "\n"


def render_csv(changes: Sequence[Change]) -> str:
    """Return one line per entry and length."""
    rows: list[dict[str, Any]] = []
    for change in changes:
        entry = change.entry
        shared = entry.row() | {
            "rank": entry.rank if change.now else None,
            "cost_out_of_memory": entry.cost_out_of_memory,
            "change": change.kind,
            "reasons": "; ".join(change.reasons),
        }
        for row in measurements(entry.points):
            low, high = row.interval or (None, None)
            point = {"length": row.length, "value": row.value, "low": low, "high": high, "samples": row.samples}
            rows.append(shared | point | {"status": "ok"})
        for status, lengths in (("oom", entry.out_of_memory), ("missing", entry.missing)):
            rows += [shared | {"length": length, "status": status} for length in lengths]
    return pd.DataFrame(rows, columns=CSV_COLUMNS, dtype=object).to_csv(index=False, lineterminator="\n")


def render_json(changes: Sequence[Change]) -> str:
    """Return every entry with its points, and what changed."""
    rows = []
    for change in changes:
        entry, before = change.entry, change.before
        columns = [field.name for field in fields(entry) if field.name not in ("points", "losses", "scores")]
        rows.append(
            {
                **{name: getattr(entry, name) for name in [*columns, "metric", "train_length"]},
                "points": [
                    {"length": row.length, "value": row.value, "interval": row.interval, "samples": row.samples}
                    for row in measurements(entry.points)
                ],
                "losses": entry.losses[["length", "value"]].to_dict("records"),
                "change": change.kind,
                "reasons": change.reasons,
                "change_p": change.p_value,
                "before": None if before is None else {"mean": before.mean, "rank": before.rank},
                "difference": change.difference,
            }
        )
    return json.dumps(rows, indent=2)


RENDERERS: dict[str, Callable[[Sequence[Change]], str]] = {
    ".html": render_html,
    ".md": render_markdown,
    ".csv": render_csv,
    ".json": render_json,
}


def save_leaderboard(changes: Sequence[Change], path: Path) -> None:
    """Write a leaderboard in the format that the suffix names.

    Raises:
        UsageError: The file cannot be written.
    """
    save_file(path, RENDERERS[path.suffix](changes))


def _boards(changes: Sequence[Change]) -> Iterator[Board]:
    def place(change: Change) -> tuple[str, str]:
        return change.entry.model, change.entry.task

    for (model, task), group in groupby(sorted(changes, key=place), key=place):
        members = list(group)
        entries = [change.entry for change in members]
        lengths = {length for entry in entries for length in (*entry.lengths, *entry.out_of_memory)}
        costs = {name: COSTS[name] for name in RANKED_COSTS if any(name in entry.costs for entry in entries)}
        yield Board(model, task, members, sorted(lengths), costs)


def _markdown_row(change: Change, board: Board, compared: bool) -> dict[str, str]:
    """Return what stands in each column, by its title."""
    entry = change.entry
    mean = f"{entry.mean:.3f}"
    if entry.mean_interval is not None:
        mean += f" ({entry.mean_interval.low:.3f} to {entry.mean_interval.high:.3f})"
    values = dict.fromkeys(entry.out_of_memory, "OOM")
    values |= {row.length: f"{row.value:.3f}" for row in measurements(entry.points)}
    row = {
        "rank": str(entry.rank) if change.now else "gone",
        "method": entry.method.replace("|", "\\|"),
        "effective length": length_label(entry.effective_length) if entry.effective_length else "none",
        "mean": mean,
        "p to best": "" if entry.p_best is None else f"{entry.p_best:.2g}",
        **{length_label(length): values.get(length, "") for length in board.lengths},
        "NLL": "" if entry.loss is None else f"{entry.loss:.3f}",
    }
    for name, cost in board.costs.items():
        told = []
        if name in entry.costs and entry.cost_length is not None:
            told.append(f"{cost.text(entry.costs[name])} at {length_label(entry.cost_length)}")
        if entry.cost_out_of_memory is not None:
            told.append(f"OOM at {length_label(entry.cost_out_of_memory)}")
        row[str(cost.column)] = ", ".join(told)
    if compared:
        row["change"] = ": ".join(filter(None, (change.kind, "; ".join(change.reasons))))
    return row


def _wrong_answers(entry: Entry) -> tuple[int, list[Answer]] | None:
    """Return the shortest length that has wrong answers, and some of them; None where there are none."""
    if not entry.higher_is_better:
        return None
    for measured in measurements(entry.points):
        wrong = (one for one in answers(measured) if isinstance(one.score, int | float) and one.score < 1)
        with suppress(UsageError):  # a damaged file, which the entry's problems name
            if shown := list(islice(wrong, WRONG_ANSWERS)):
                return measured.length, shown
    return None
