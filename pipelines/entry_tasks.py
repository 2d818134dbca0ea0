"""The tasks of lm-eval that an entry of a sweep stands for, with the documents that `lm_eval` would give them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import torch
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import MesaError, UsageError, unknown_name
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.sources import task_digest
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.harness.tokenizing import TextEncoding, evaluated_model, rendering, task_encoding
from mesa_lm.pipelines.settings import ModelEntry, Sweep, TaskEntry

SHOWN = 300  # characters of an error that is not ours


class ChatTemplate(MesaHFLM):
    """The part of `mesa-hf` that renders chats, without a model."""

    def __init__(self, encoding: TextEncoding) -> None:
        self.encoding = encoding
        self.tokenizer, self.chat_template_args = encoding.tokenizer, dict(encoding.chat_template_args)

    def check(self, name: bool | str) -> None:
        """Refuse a chat template that is not there.

        Raises:
            ModelError: The tokenizer has none.
            UsageError: It has several, and none of this name.
        """
        self.apply_chat_template([{"role": "user", "content": "-"}])
        templates = self.tokenizer.chat_template
        if isinstance(name, str) and isinstance(templates, dict) and name not in templates:
            raise UsageError(unknown_name("chat template", name, templates))


class EntryTaskManager(TaskManager):
    """A task manager that builds the tasks of one entry of a sweep, and with them their documents, only once.

    A single task has the documents that it has among all tasks of its entry in an `lm_eval` run of its own: they may
    depend on the others, and on random numbers that are drawn for one task after the other.
    """

    def __init__(
        self, entry: TaskEntry, seed: int, model_args: Mapping[str, Any] = MappingProxyType({}), **options: Any
    ) -> None:
        super().__init__(**options)
        self._asked, self._seed, self._model_args = entry, seed, model_args
        self._whole: Any = None

    @cached_property
    def chat(self) -> ChatTemplate:
        """The chat template of the entry's model, as `mesa-hf` would apply it."""
        with evaluated_model(None):  # the model is not loaded
            return ChatTemplate(task_encoding({"pretrained": str(MODEL_PATH), **self._model_args}))

    def _encoding(self) -> TextEncoding:
        """Return how the entry's model will be sent the prompts of its tasks."""
        rendered = self.chat.apply_chat_template if self._asked.apply_chat_template else None
        return self.chat.encoding._replace(rendered=rendering(self._asked.system_instruction, rendered))

    def load(self, spec: Any) -> Any:
        """Return tasks of the entry; see lm-eval's `TaskManager.load`."""
        if self._whole is None:
            if self._asked.apply_chat_template:
                self.chat.check(self._asked.apply_chat_template)
            random.seed(self._seed)  # these are the seeds of `lm_eval`, which sets them just before
            numpy.random.seed(DEFAULT_OTHER_SEED)
            torch.manual_seed(DEFAULT_OTHER_SEED)
            with evaluated_model(self._encoding):
                self._whole = super().load(self.match_tasks([self._asked.task]))
        names = spec if isinstance(spec, list) else [spec]
        tasks = self._whole["tasks"]
        if all(name in tasks for name in names):
            return {"tasks": {name: tasks[name] for name in names}, "groups": {}, "group_map": {}}
        return self._whole

    def sources(self, name: str) -> str:
        """Return a digest of the sources of a task; empty for one that has no file."""
        entry = self.task_index.get(name)
        return task_digest(Path(entry.yaml_path)) if entry is not None and entry.yaml_path else ""


def entry_task_manager(sweep: Sweep, model: ModelEntry, task: TaskEntry) -> EntryTaskManager:
    """Return lm-eval's task manager with the options of one entry of a sweep, as its command would make it.

    Always the same one, so that the documents are, too. They do not depend on the method.
    """
    described = (model.arguments, sweep.metadata(task))
    arguments, options = (json.dumps(one, sort_keys=True, default=str) for one in described)
    folder = sweep.include_path and sweep.include_path.expanduser()
    return _entry_task_manager(task.model_dump_json(), sweep.seed, folder, arguments, options)


@cache
def _entry_task_manager(
    entry: str, seed: int, include_path: Path | None, arguments: str, options: str
) -> EntryTaskManager:
    model_args = json.loads(arguments)
    metadata = {**model_args, **json.loads(options)}
    asked = TaskEntry.model_validate_json(entry)
    return EntryTaskManager(asked, seed, model_args, include_path=include_path, metadata=metadata)


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
