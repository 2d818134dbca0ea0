"""Write a leaderboard as a page for the browser, as Markdown, CSV or JSON."""

import csv
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mesa_lm.errors import UsageError
from mesa_lm.reporting.changes import Change
from mesa_lm.reporting.plots import draw
from mesa_lm.reporting.ranking import COSTS, Entry
from mesa_lm.reporting.results import interval, length_label
from mesa_lm.reporting.samples import Answer, answers

# Cost, title of its column, filter that writes it.
COST_COLUMNS = (
    ("peak_bytes", "peak memory", "bytes"),
    ("decode_s", "per token", "seconds"),
    ("prefill_s", "prefill", "seconds"),
    ("sample_s", "per sample", "seconds"),
)
ANSWERS = 3  # wrong answers shown per method
ANSWER_LENGTH = 300  # characters of each


def render_html(changes: Sequence[Change]) -> str:
    """Return a page that holds everything it needs and loads nothing.

    Args:
        changes: The entries, with what changed.
    """
    environment = Environment(
        loader=PackageLoader("mesa_lm.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"length": length_label, "bytes": _bytes, "seconds": _seconds}
    boards = [
        {
            "model": model,
            "task": task,
            "rows": rows,
            "costs": [column for column in COST_COLUMNS if any(column[0] in row.entry.costs for row in rows)],
            "metric": rows[0].entry.metric,
            "figure": _figure([row.now for row in rows if row.now]),
        }
        for (model, task), rows in _boards(changes)
    ]
    return environment.get_template("page.html").render(
        boards=boards, wrong=_wrong_answers, interval=interval, compared=any(change.before for change in changes)
    )


def render_markdown(changes: Sequence[Change]) -> str:
    """Return one table per model and task."""
    parts = []
    for (model, task), members in _boards(changes):
        entries = [change.entry for change in members]
        lengths = sorted({length for entry in entries for length in (*_lengths(entry), *entry.out_of_memory)})
        compared = any(change.before for change in changes)
        costs = [column for column in COST_COLUMNS if any(column[0] in entry.costs for entry in entries)]
        head = ["rank", "method", "effective length", "mean", "p to best", *map(length_label, lengths), "NLL"]
        head += [title for _, title, _ in costs] + (["change"] if compared else [])
        lines = [f"## {model}: {task}, {entries[0].metric}", "", _row(head), _row(["---"] * len(head))]
        for change in members:
            entry = change.entry
            by_length = dict.fromkeys(entry.out_of_memory, "OOM")
            by_length |= {cell.length: f"{cell.value:.3f}" for cell in entry.cells}
            lines.append(
                _row(
                    [
                        str(entry.rank) if change.now else "gone",
                        entry.method.replace("|", "\\|"),
                        length_label(entry.effective_length) if entry.effective_length else "none",
                        _mean(entry),
                        "" if entry.p_best is None else f"{entry.p_best:.2g}",
                        *(by_length.get(length, "") for length in lengths),
                        "" if entry.loss is None else f"{entry.loss:.3f}",
                        *(_cost(entry, name, unit) for name, _, unit in costs),
                        *([": ".join(filter(None, (change.kind, "; ".join(change.reasons))))] if compared else []),
                    ]
                )
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def render_csv(changes: Sequence[Change]) -> str:
    """Return one line per entry and length."""
    rows = []
    for change in changes:
        entry = change.entry
        shared: dict[str, Any] = {
            "model": entry.model,
            "task": entry.task,
            "metric": entry.metric,
            "rank": entry.rank if change.now else None,
            "method": entry.method,
            "effective_length": entry.effective_length,
            "mean": entry.mean,
            "p_best": entry.p_best,
            "nll": entry.loss,
            **{name: entry.costs.get(name) for name in COSTS},
            "cost_length": entry.cost_length,
            "cost_out_of_memory": entry.cost_out_of_memory,
            "change": change.kind,
            "reasons": "; ".join(change.reasons),
        }
        for cell in entry.cells:
            low, high = interval(cell) or (None, None)
            own = {"length": cell.length, "value": cell.value, "low": low, "high": high, "samples": cell.samples}
            rows.append(shared | own | {"status": "ok"})
        for status, lengths in (("oom", entry.out_of_memory), ("missing", entry.missing)):
            rows += [shared | {"length": length, "status": status} for length in lengths]
    out = io.StringIO()
    columns = dict.fromkeys(column for row in rows for column in row)
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def render_json(changes: Sequence[Change]) -> str:
    """Return every entry with its points, and what changed."""
    rows = []
    for change in changes:
        entry = change.entry
        points = [
            {"length": cell.length, "value": cell.value, "interval": interval(cell), "samples": cell.samples}
            for cell in entry.cells
        ]
        row = {key: value for key, value in asdict(entry).items() if key not in ("cells", "losses")}
        row |= {"metric": entry.metric, "train_length": entry.train_length, "points": points}
        row["losses"] = [{"length": cell.length, "value": cell.value} for cell in entry.losses]
        before = None if change.before is None else {"mean": change.before.mean, "rank": change.before.rank}
        row |= {"change": change.kind, "reasons": change.reasons, "change_p": change.p_value, "before": before}
        rows.append(row | {"difference": change.difference})
    return json.dumps(rows, indent=2)


RENDERERS: dict[str, Callable[[Sequence[Change]], str]] = {
    ".html": render_html,
    ".md": render_markdown,
    ".csv": render_csv,
    ".json": render_json,
}


def write(changes: Sequence[Change], path: Path) -> None:
    """Write a leaderboard in the format that the suffix names.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RENDERERS[path.suffix](changes), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _boards(changes: Sequence[Change]) -> list[tuple[tuple[str, str], list[Change]]]:
    def board(change: Change) -> tuple[str, str]:
        return change.entry.model, change.entry.task

    return [(key, list(group)) for key, group in groupby(sorted(changes, key=board), key=board)]


def _figure(entries: Sequence[Entry]) -> Markup:
    """Return the curves as inline SVG; its texts are drawn as paths, so nothing in it comes from outside."""
    if not entries:
        return Markup()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.svg"
        draw([cell for entry in entries for cell in entry.cells], path)
        text = path.read_text(encoding="utf-8")
    return Markup(text[text.index("<svg") :])


def _wrong_answers(entry: Entry) -> list[Answer]:
    """Return some wrong answers at the shortest length that has any."""
    for cell in entry.cells:
        wrong = [answer for answer in answers(cell) if answer.score < 1][:ANSWERS]
        if wrong:
            return [
                answer._replace(expected=answer.expected[:ANSWER_LENGTH], found=answer.found[:ANSWER_LENGTH])
                for answer in wrong
            ]
    return []


def _lengths(entry: Entry) -> list[int]:
    return [cell.length for cell in entry.cells]


def _mean(entry: Entry) -> str:
    if entry.mean_interval is None:
        return f"{entry.mean:.3f}"
    return f"{entry.mean:.3f} ({entry.mean_interval.low:.3f} to {entry.mean_interval.high:.3f})"


def _cost(entry: Entry, name: str, unit: str) -> str:
    parts = []
    if name in entry.costs and entry.cost_length is not None:
        value = entry.costs[name]
        parts.append(f"{_bytes(value) if unit == 'bytes' else _seconds(value)} at {length_label(entry.cost_length)}")
    if entry.cost_out_of_memory is not None:
        parts.append(f"OOM at {length_label(entry.cost_out_of_memory)}")
    return ", ".join(parts)


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(cells)} |"
