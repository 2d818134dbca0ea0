"""Write a leaderboard as a page for the browser, as Markdown, CSV or JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from mesa_lm.reporting.changes import Change
from mesa_lm.reporting.costs import RANKED_COSTS
from mesa_lm.reporting.files import save_file
from mesa_lm.reporting.leaderboard_page import render_html
from mesa_lm.reporting.leaderboard_table import Cell, boards
from mesa_lm.reporting.lm_eval_files import ResultsFile
from mesa_lm.reporting.overall import OVERALL_COLUMNS, overall_tables
from mesa_lm.reporting.provenance import PARTS, column_name
from mesa_lm.reporting.ranking import PRICE_COLUMNS

CSV_COLUMNS = [
    *("model", "task", "metric", "rank", "method", "effective_length", "mean", "p_best"),
    *(*PRICE_COLUMNS, "nll", *RANKED_COSTS, "cost_length", "cost_out_of_memory", "change", "reasons"),
    *("length", "value", "low", "high", "samples", "status", "kind", "is_calibrated", *map(column_name, PARTS)),
]


def render_markdown(changes: Sequence[Change]) -> str:
    """Return one table per model and task, and one over all tasks of a model with several."""
    parts = []
    for board in boards(changes):
        columns = {column.title: list(map(_markdown_text, column.cells)) for column in board.columns}
        table = _markdown_table(list(columns), zip(*columns.values(), strict=True))
        parts.append(f"## {board.model}: {board.task}, {board.metric}\n\n{table}")
    for overall in overall_tables([change.now for change in changes if change.now]):
        rows = (row.texts(place) for place, row in enumerate(overall.rows, start=1))
        table = _markdown_table(list(OVERALL_COLUMNS), ([text.replace("|", "\\|") for text in row] for row in rows))
        parts.append(f"## {overall.model}: all tasks\n\n{table}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
        for row in entry.points:
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
                "price": entry.price and entry.price._asdict(),
                "points": [
                    {"length": row.length, "value": row.value, "interval": row.interval, "samples": row.samples}
                    for row in entry.points
                ],
                "losses": [{"length": row.length, "value": row.value} for row in entry.losses],
                "change": change.kind,
                "reasons": change.reasons,
                "change_p": change.p_value,
                "before": None if before is None else {"mean": before.mean, "rank": before.rank},
                "difference": change.difference,
            }
        )
    return json.dumps(rows, indent=2)


def save_leaderboard(changes: Sequence[Change], path: Path, files: Mapping[Path, ResultsFile]) -> None:
    """Write a leaderboard in the format that the suffix names: `.html`, `.md`, `.csv` or `.json`.

    Args:
        changes: The entries, with what changed.
        path: The file.
        files: The results files that they come from.

    Raises:
        UsageError: The file cannot be written.
    """
    renderers = {".md": render_markdown, ".csv": render_csv, ".json": render_json}
    if path.suffix == ".html":
        downloads = {"leaderboard.csv": render_csv(changes), "leaderboard.json": render_json(changes)}
        save_file(path, render_html(changes, files, downloads))
    else:
        save_file(path, renderers[path.suffix](changes))


def _markdown_text(cell: Cell) -> str:
    notes = "; ".join((*cell.notes, *cell.warnings))
    return " ".join(filter(None, (cell.text, notes and f"({notes})"))).replace("|", "\\|")
