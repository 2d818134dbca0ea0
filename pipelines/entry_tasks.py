"""The tasks of lm-eval that an entry of a sweep stands for, with the documents that `lm_eval` would give them."""

from __future__ import annotations

import json
import random
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import torch
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import MesaError, UsageError
from mesa_lm.harness.sources import task_digest
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.harness.tokenizing import NAMING, TextEncoding, evaluated_model, load_tokenizer
from mesa_lm.pipelines.mapped_documents import map_documents
from mesa_lm.pipelines.settings import ModelEntry, Sweep, TaskEntry

SHOWN = 300  # characters of an error that is not ours


class EntryTaskManager(TaskManager):
    """A task manager that builds the tasks of one entry of a sweep, and with them their documents, only once.

    A single task has the documents that it has among all tasks of its entry in an `lm_eval` run of its own: they may
    depend on the others, and on random numbers that are drawn for one task after the other.
    """

    def __init__(self, entry: str, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self._asked, self._seed = entry, seed
        self._whole: Any = None

    def load(self, spec: Any) -> Any:
        """Return tasks of the entry; see lm-eval's `TaskManager.load`."""
        if self._whole is None:
            random.seed(self._seed)  # these are the seeds of `lm_eval`, which sets them just before
            numpy.random.seed(DEFAULT_OTHER_SEED)
            torch.manual_seed(DEFAULT_OTHER_SEED)
            # A sweep evaluates by mesa-hf, whose default is the demo model.
            named = any((self.metadata or {}).get(name) for name in NAMING)
            with evaluated_model(None if named else _demo_encoding):
                self._whole = super().load(self.match_tasks([self._asked]))
            for task in self._whole["tasks"].values():
                map_documents(task)
        names = spec if isinstance(spec, list) else [spec]
        tasks = self._whole["tasks"]
        if all(name in tasks for name in names):
            return {"tasks": {name: tasks[name] for name in names}, "groups": {}, "group_map": {}}
        return self._whole

    def sources(self, name: str) -> str:
        """Return a digest of the sources of a task; empty for one that has no file."""
        entry = self.task_index.get(name)
        return task_digest(Path(entry.yaml_path)) if entry is not None and entry.yaml_path else ""


def _demo_encoding() -> TextEncoding:
    return TextEncoding(load_tokenizer({"pretrained": str(MODEL_PATH)}))


def entry_task_manager(sweep: Sweep, model: ModelEntry, task: TaskEntry) -> EntryTaskManager:
    """Return lm-eval's task manager with the options of one entry of a sweep, as its command would make it.

    Always the same one, so that the documents are, too. They do not depend on the method.
    """
    metadata = json.dumps({**model.arguments, **sweep.metadata(task)}, sort_keys=True, default=str)
    folder = sweep.include_path and sweep.include_path.expanduser()
    return _entry_task_manager(task.task, sweep.seed, folder, metadata)


@cache
def _entry_task_manager(entry: str, seed: int, include_path: Path | None, metadata: str) -> EntryTaskManager:
    return EntryTaskManager(entry, seed, include_path=include_path, metadata=json.loads(metadata))


def forget_tasks() -> None:
    """Build tasks and documents anew when they are next asked for; the data may have changed."""
    _entry_task_manager.cache_clear()


def load_leaves(sweep: Sweep, model: ModelEntry, task: TaskEntry) -> dict[str, Task]:
    """Return the tasks of lm-eval that one entry of a sweep stands for, by name.

    Raises:
        UsageError: lm-eval knows no such task, or cannot load it, as where its data set is out of reach.
    """
    manager = entry_task_manager(sweep, model, task)
    names = manager.match_tasks([task.task])
    if not names:
        near = get_close_matches(task.task, manager.all_tasks, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"lm-eval knows no task {task.task!r}; {hint}`lm_eval ls tasks` lists them")
    try:
        leaves: dict[str, Task] = manager.load(names)["tasks"]
    except MesaError:
        raise
    except Exception as error:  # whatever a task's own code raises, or the reader of its data set
        reason = " ".join(str(error).split())[:SHOWN]
        raise UsageError(f"task {task.task!r} cannot be loaded here: {type(error).__name__}: {reason}") from error
    return leaves
