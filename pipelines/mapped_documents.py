"""Documents of tasks in files that are mapped into memory: a large sweep has more of them than a machine has memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset, load_from_disk
from lm_eval.api.task import Task


class Rows(Sequence[Any]):
    """The rows of a data set, read when they are asked for; lm-eval draws few-shot examples from a sequence."""

    def __init__(self, table: Dataset) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, place: Any) -> Any:
        return self._table[place]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._table)


def map_documents(task: Task) -> None:
    """Put documents that a task holds in memory into files, and have it read them from there.

    The files lose their names at once, so that a process that is killed leaves none behind.

    Args:
        task: The task of lm-eval, which holds them twice: to ask of, and to draw few-shot examples from.
    """
    tables = getattr(task, "dataset", None)
    if not isinstance(tables, dict) or getattr(task.config, "process_docs", None) is not None:
        return
    for split, table in tables.items():
        if not isinstance(table, Dataset) or table.cache_files or not len(table):
            continue  # mapped already, or none of datasets'
        try:
            with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                table.save_to_disk(folder)
                tables[split] = load_from_disk(folder, keep_in_memory=False)
        except OSError:  # no room for files: memory has to do
            return
    task.task_docs = task.eval_docs
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        return
    shown = task.fewshot_docs()
    if isinstance(shown, Dataset) and len(shown) == len(sampler.df):
        sampler.df = Rows(shown)
