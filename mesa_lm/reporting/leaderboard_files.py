"""Write a leaderboard as a page for the browser, as Markdown, CSV or JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from mesa_lm.lengths import length_label
from mesa_lm.reporting.changes import Change
from mesa_lm.reporting.costs import RANKED_COSTS
from mesa_lm.reporting.files import save_file
from mesa_lm.reporting.leaderboard_page import render_html
from mesa_lm.reporting.leaderboard_table import Cell, boards
from mesa_lm.reporting.lm_eval_files import ResultsFile
from mesa_lm.reporting.ranking import Entry
from mesa_lm.reporting.results import measurements

CSV_COLUMNS = [
    *("model", "task", "metric", "rank", "method", "effective_length", "mean", "p_best", "nll", *RANKED_COSTS),
    *("cost_length", "cost_out_of_memory", "commit", "change", "reasons", "length", "value", "low", "high", "samples"),
    "status",
]


def render_markdown(changes: Sequence[Change]) -> str:
    """Return one table per model and task."""
    parts = []
    for board in boards(changes):
        columns = {column.title: list(map(_markdown_text, column.cells)) for column in board.columns}
        shown = [_values(change.entry) for change in board.changes]
        columns |= {length_label(length): [values.get(length, "") for values in shown] for length in board.lengths}
        rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
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
    content = render_html(changes, files) if path.suffix == ".html" else renderers[path.suffix](changes)
    save_file(path, content)


def _values(entry: Entry) -> dict[int, str]:
    """Return what stands in the column of each length."""
    return dict.fromkeys(entry.out_of_memory, "OOM") | {
        row.length: f"{row.value:.3f}" for row in measurements(entry.points)
    }


def _markdown_text(cell: Cell) -> str:
    notes = "; ".join((*cell.notes, *cell.warnings))
    return " ".join(filter(None, (cell.text, notes and f"({notes})"))).replace("|", "\\|")
