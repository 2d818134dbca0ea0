"""The Mesa paper's tables, and its figure 10, in its form: a row per method, ours above the paper's own numbers."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.reporting.lm_eval_files import ResultsFile
from mesa_lm.reporting.paper_numbers import PaperNumbers

NOT_AVAILABLE = "not available"
# LongBench says how long an input is in words.
BUCKETS = (("4-8k", 4000, 8000), ("8k+", 8000, float("inf")))


class PaperCell(NamedTuple):
    """Say what a number is of.

    Attributes:
        column: The column that it stands in, as shown.
        task: The task group.
        length: In tokens, or the name of a range of lengths.
        metric: Its name.
    """

    column: str
    task: str
    length: str
    metric: str


class TableForm(NamedTuple):
    """Hold what a table of the paper shows.

    Attributes:
        title: What it shows.
        metrics: In one cell, in this order.
    """

    title: str
    metrics: tuple[str, ...]


TABLES = {
    "table-1": TableForm("GovReport, ROUGE-1 / ROUGE-2 / ROUGE-L by input length", ("rouge1", "rouge2", "rougeL")),
    "table-2": TableForm("GovReport, BLEU by input length", ("bleu",)),
    "table-3": TableForm("LongBench, score by words of the input", ("score",)),
    "figure-10": TableForm("RULER, single keys: share found, the mean of the tasks, by input length", ("score",)),
}


def paper_table(exhibit: str, files: Iterable[ResultsFile], numbers: PaperNumbers) -> str:
    """Return a table of the paper as Markdown, from results of one's own.

    Args:
        exhibit: One of `TABLES`.
        files: Results files, the run started first in front; the last one wins.
        numbers: What the paper itself says.

    Raises:
        UsageError: The files have nothing that the table shows, or samples are missing or damaged.
    """
    form = TABLES[exhibit]
    read = {"table-3": _longbench, "figure-10": _ruler}.get(exhibit, _by_length)
    found: dict[tuple[str, str], dict[PaperCell, float]] = {}
    for file in files:
        values = dict(read(file, form.metrics))
        if values:
            found.setdefault((file.model, file.method), {}).update(values)
    if not found:
        raise UsageError(f"{exhibit} needs {', '.join(form.metrics)} of {form.title.partition(',')[0]}; found none")
    cells = sorted({cell for own in found.values() for cell in own}, key=_order)
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows = [["model", "method", "", *columns], ["---"] * (3 + len(columns))]
    for (model, method), own in sorted(found.items(), key=lambda one: (one[0][0], one[0][1] != "origin", one[0][1])):
        theirs = {cell: numbers.value(model, method, cell.task, cell.length, cell.metric) for cell in cells}
        rows.append([model, method, "ours", *_texts(own, cells, columns, form.metrics, "")])
        rows.append(["", "", "paper", *_texts(theirs, cells, columns, form.metrics, NOT_AVAILABLE)])
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    return f"{exhibit.replace('-', ' ')} of the Mesa paper: {form.title}\n\n{table}\n"


def _texts(
    values: Mapping[PaperCell, float | None],
    cells: Sequence[PaperCell],
    columns: Sequence[str],
    metrics: Sequence[str],
    lacking: str,
) -> Iterator[str]:
    """Yield what stands in each column."""
    for column in columns:
        own = {cell.metric: values.get(cell) for cell in cells if cell.column == column}
        known = [own.get(metric) for metric in metrics]
        if any(value is not None for value in known):
            yield " / ".join("?" if value is None else f"{value:.3f}" for value in known)
        else:
            yield lacking


def _order(cell: PaperCell) -> tuple[str, int, str, str]:
    return cell.task, int(cell.length) if cell.length.isdecimal() else 0, cell.length, cell.metric


def _by_length(file: ResultsFile, metrics: Sequence[str]) -> Iterator[tuple[PaperCell, float]]:
    """Yield the metrics of GovReport at each length."""
    for one in file.measurements():
        if one.task == "govreport_long" and one.metric in metrics:
            yield PaperCell(length_label(one.length), one.task, str(one.length), one.metric), one.value


def _ruler(file: ResultsFile, metrics: Sequence[str]) -> Iterator[tuple[PaperCell, float]]:
    """Yield the mean over the tasks of single keys at each length; RULER names its metrics by lengths, -1 is none."""
    found: dict[int, list[float]] = {}
    for name, scores in file.content["results"].items():
        for key, value in scores.items() if name.startswith("niah_single_") else ():
            length = key.partition(",")[0]
            if length.isdecimal() and isinstance(value, int | float) and value != -1:
                found.setdefault(int(length), []).append(float(value))
    for length, values in found.items():
        yield PaperCell(length_label(length), "niah_single", str(length), metrics[0]), fmean(values)


def _longbench(file: ResultsFile, metrics: Sequence[str]) -> Iterator[tuple[PaperCell, float]]:
    """Yield the mean score of each of LongBench's tasks by length of the input, from its samples."""
    stamp = file.path.stem.removeprefix("results_")
    for name in file.content["results"]:
        if not name.startswith("longbench_"):
            continue
        scored = list(_lengths_and_scores(file.path.with_name(f"samples_{name}_{stamp}.jsonl"), metrics[0]))
        task = name.removeprefix("longbench_")
        for bucket, low, high in BUCKETS:
            values = [score for length, score in scored if low <= length < high]
            if values:
                yield PaperCell(f"{task} {bucket}", task, bucket, metrics[0]), fmean(values)


def _lengths_and_scores(path: Path, metric: str) -> Iterator[tuple[int, float]]:
    """Yield the words of the input and the score of each sample."""
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                yield int(record["doc"]["length"]), float(record[metric])
    except OSError as error:
        raise UsageError(f"{path}: cannot be read, and table 3 needs the samples: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: a sample lacks its length or score, or is damaged: {error}") from error
