"""The Mesa paper's own numbers, as far as they could be established: typed in from it, never measured by us."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mesa_lm.errors import UsageError
from mesa_lm.reporting.file_checks import is_number

SHIPPED = Path(__file__).with_name("paper_numbers.csv")
COLUMNS = ["exhibit", "model", "method", "task", "length", "metric", "value", "source"]


class PaperNumbers:
    """Numbers that were typed in from one figure or table."""

    def __init__(self, exhibit: str, beside: Sequence[Path] = ()) -> None:
        """Read them.

        Args:
            exhibit: Which figure or table, such as "table-1".
            beside: Files of a user's with the columns of `COLUMNS`, besides the one that ships; the last one wins. An
                empty model stands for any; `length` is in tokens, or names a column of the table.

        Raises:
            UsageError: A file cannot be read, or says what cannot be.
        """
        table = pd.concat([_read(path) for path in (SHIPPED, *beside)])
        self.table = table[table.exhibit == exhibit]

    def value(self, model: str, method: str, task: str, length: str, metric: str) -> float | None:
        """Return a number; None where it is not known.

        Args:
            model: Name of the model.
            method: With the parameters that were set; the method's name alone will do where they are not in the file.
            task: Name of the task group.
            length: In tokens, or the column.
            metric: Name of the metric.
        """
        for label in (method, method.partition(" (")[0]):
            own = self.table[
                self.table.model.isin(("", model))
                & (self.table.method == label)
                & (self.table.task == task)
                & (self.table.length == length)
                & (self.table.metric == metric)
            ]
            if not own.empty:
                return float(own.value.iloc[-1])
        return None


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as CSV: {error}") from error
    if list(table.columns) != COLUMNS:
        raise UsageError(f"{path}: the columns must be {', '.join(COLUMNS)}; found {', '.join(table.columns)}")
    values = pd.to_numeric(table.value, errors="coerce")
    if not all(map(is_number, values)):
        raise UsageError(f"{path}: every value must be a number, found {table.value[values.isna()].iloc[0]!r}")
    return table.assign(value=values)
