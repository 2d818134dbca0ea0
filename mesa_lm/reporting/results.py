"""Everything that was measured, as one table: read once from lm-eval's results files, then chosen from and grouped."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.lengths import length_label
from mesa_lm.reporting.lm_eval_files import Measurement, ResultsFile, read_files

logger = logging.getLogger(__name__)

# A row of the table is a `Measurement`, whether it is a share, and the bounds of its interval.
RESULT_COLUMNS = [*Measurement._fields, "is_share", "low", "high"]
# The columns in which something may be missing.
NULLABLE = {
    **dict.fromkeys(["stderr", "low", "high"], "float64"),
    **dict.fromkeys(["samples", "train_length"], "Int64"),
    "higher_is_better": "boolean",
}
# What a row is the value of; the table has one row of each and is sorted by them.
KEY = ["model", "method", "task", "length", "metric"]


@dataclass(frozen=True, eq=False)
class Results:
    """Hold what results files say: one row per metric of a model and method on a task at a length.

    Attributes:
        table: The columns are those of `RESULT_COLUMNS`; what is unknown is missing there (NaN or NA).
        files: The files that the rows come from, by what stands in column `source`.
        problems: For each damaged file that was left out what is wrong with it.
    """

    table: pd.DataFrame
    files: Mapping[Path, ResultsFile]
    problems: tuple[str, ...] = ()

    def where(self, **wanted: str | None) -> "Results":
        """Return the rows that have these values in these columns; None stands for any."""
        chosen = pd.Series(True, index=self.table.index)
        for column, value in wanted.items():
            if value is not None:
                chosen &= self.table[column] == value
        table = self.table[chosen]
        return Results(table, {path: self.files[path] for path in table.source.unique()}, self.problems)

    def select(self, metric: str, task: str | None = None) -> "Results":
        """Return the rows of one metric of one task.

        Args:
            metric: Name of the metric.
            task: Name of the task group; None where only one has the metric.

        Raises:
            UsageError: If the task or the metric is not there, or if several tasks have the metric and none is named.
        """
        if task is not None and task not in set(self.table.task):
            raise UsageError(unknown_name("task", task, set(self.table.task)))
        of_task = self.where(task=task)
        chosen = of_task.where(metric=metric)
        if chosen.table.empty:
            raise UsageError(unknown_name("metric", metric, set(of_task.table.metric)))
        tasks = sorted(set(chosen.table.task))
        if len(tasks) > 1:
            raise UsageError(f"several tasks have the metric {metric!r}: choose one with --task ({', '.join(tasks)})")
        return chosen


def read(paths: Iterable[Path]) -> Results:
    """Read results files, and those in folders and their subfolders, as written by `lm_eval --output_path`.

    Where two files hold the same metric of the same model, method, task and length, the run started last wins, which
    is logged. Tasks without a length are left out, and so are damaged files, which the results name.

    Args:
        paths: As in `read_files`.

    Returns:
        The rows by model, method, task, length and metric.

    Raises:
        UsageError: If a path is missing, or nothing with a length is found in files that are whole.
    """
    paths = list(paths)
    files, problems = read_files(paths)
    found = table_of(measurement for file in files for measurement in file.measurements())
    if found.empty:
        if problems:
            raise UsageError(problems[0] + (f" (and {len(problems) - 1} more damaged files)" if problems[1:] else ""))
        seen = "only tasks that name no length" if files else "no results file"
        raise UsageError(
            f"no results per length in {', '.join(map(str, paths))}: found {seen}; "
            "needed are files of `lm_eval --output_path` for tasks with a length, such as passkey_long"
        )
    found["replaced_by"] = found.groupby(KEY)["source"].shift(-1)
    older = found[found.replaced_by.notna() & (found.replaced_by != found.source)]
    for (new, old), lengths in older.groupby(["replaced_by", "source"], sort=False)["length"]:
        logger.warning("%s replaces the older %s at %s", new, old, ", ".join(map(length_label, sorted(set(lengths)))))
    table = found[found.replaced_by.isna()].drop(columns="replaced_by").sort_values(KEY, ignore_index=True)
    return Results(table, {file.path: file for file in files}, tuple(problems)).where()


def table_of(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """Return measurements as a table with the columns of `RESULT_COLUMNS`, in their order."""
    rows = [(*found, found.is_share, *(found.interval or (None, None))) for found in measurements]
    return pd.DataFrame(rows, columns=RESULT_COLUMNS).astype(NULLABLE)


def measurements(table: pd.DataFrame) -> Iterator[Measurement]:
    """Yield the rows of a table, with None for what is missing."""
    columns = (table[field] for field in Measurement._fields)
    values = (column.astype(object).where(column.notna(), None).tolist() for column in columns)
    yield from map(Measurement._make, zip(*values, strict=True))
