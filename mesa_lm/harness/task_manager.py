"""Let lm-eval find this project's tasks, and run a group once per length (see `mesa_lm.harness.length_groups`)."""

import inspect
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from datasets import Features, List, Value
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks.manager import TaskManager as StockTaskManager
from lm_eval.utils import pattern_match

from mesa_lm.errors import UsageError, lost_link
from mesa_lm.harness.left_out_logs import left_out
from mesa_lm.harness.length_groups import LengthEntry, LengthGroups
from mesa_lm.harness.lm_eval_caches import key_requests_by_content
from mesa_lm.harness.model_args import without_models
from mesa_lm.harness.sent_lengths import check_sent_lengths
from mesa_lm.harness.task_index import LazyIndex
from mesa_lm.lengths import split_length_name

TASKS_PATH = (Path(__file__).parents[1] / "tasks").resolve()  # of this project
if not TASKS_PATH.is_dir():
    raise lost_link(TASKS_PATH)
# The groups of this project; a file that starts with an underscore is a part of one.
OWN_GROUPS = frozenset(path.stem for path in TASKS_PATH.glob("*/*.yaml") if not path.stem.startswith("_"))


def is_own_task(spec: Any) -> bool:
    """Return whether something that lm-eval loads, such as a name or a task, is of this project's groups."""
    if isinstance(spec, Mapping):
        spec = spec.get("task") or spec.get("group")
    name = spec if isinstance(spec, str) else getattr(spec, "task_name", None)
    return isinstance(name, str) and split_length_name(name)[0] in OWN_GROUPS


class _Factory(TaskFactory):
    """lm-eval's factory of tasks and groups, minding what `LengthEntry` adds."""

    def __init__(self, *, meta: dict[str, Any] | None = None) -> None:
        super().__init__(meta=meta)
        self.asked: Mapping[str, list[int]] = {}  # lengths by length group, see TaskManager.load

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        if isinstance(entry, LengthEntry):
            overrides = entry.added | (overrides or {})
        # This imports the task's modules. Some draw random numbers as they are imported (rich does), and the documents
        # that a task then draws, as RULER's do, would depend on what the process had imported before.
        state = random.getstate()
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        random.setstate(state)
        group, length = split_length_name(entry.name)
        if "lengths" in config["metadata"] and "lengths" not in self._meta and length in self.asked.get(group, ()):
            config["metadata"]["lengths"] = self.asked[group]
        return _with_typed_features(config)

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Any:
        # lm-eval would recommend to give it metadata, once for every length.
        known = isinstance(entry, LengthEntry)
        with left_out("lm_eval.api.task", "Custom kwargs can be passed") if known else nullcontext():
            task = super()._build_task(entry, overrides)
        dump = task.dump_config
        task.dump_config = lambda: _with_named_functions(dump())
        key_requests_by_content(task, entry.yaml_path)
        if known:
            check_sent_lengths(task)
        return task


def _with_named_functions(value: Any) -> Any:
    """Replace functions within a task's saved configuration by their names; their addresses are no one's concern."""
    if isinstance(value, dict):
        return {key: _with_named_functions(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_with_named_functions(part) for part in value]
    if isinstance(value, str) and value.startswith("<"):  # printed already, for want of a source
        return re.sub(r" at 0x[0-9a-f]+>$", ">", value)
    return f"<function {value.__qualname__}>" if inspect.isroutine(value) else value


def _with_typed_features(config: dict[str, Any]) -> dict[str, Any]:
    """Replace the column types of a task's data where its YAML has them in a form that `datasets` 5 refuses.

    lm-eval's InfiniteBench says `{dtype: string, sequence: true}`, for example.
    """
    options = config.get("dataset_kwargs") or {}
    columns = options.get("features")
    if not isinstance(columns, dict) or any(
        not {"dtype"} <= set(column) <= {"dtype", "sequence"} for column in columns.values()
    ):
        return config
    types = {
        name: List(Value(column["dtype"])) if column.get("sequence") else Value(column["dtype"])
        for name, column in columns.items()
    }
    return config | {"dataset_kwargs": options | {"features": Features(types)}}


class TaskManager(StockTaskManager):
    """lm-eval's task manager, which also knows this project's tasks and length groups."""

    def __init__(
        self,
        verbosity: str | None = None,
        include_path: str | Path | Sequence[str | Path] | None = None,
        include_defaults: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Index all tasks.

        Args:
            verbosity: Deprecated by lm-eval.
            include_path: Folders of the user's tasks; they take precedence over this project's.
            include_defaults: Whether to index lm-eval's own tasks.
            metadata: Options of the tasks, together with the arguments of the model.
        """
        chosen = [include_path] if isinstance(include_path, str | Path) else include_path or []
        others = [path for path in chosen if Path(path).resolve() != TASKS_PATH]
        # With tasks of the user's, lm-eval says which of its own they replace.
        waits = include_defaults and not others
        metadata = without_models(metadata or {})
        super().__init__(verbosity, [TASKS_PATH, *others], include_defaults and not waits, metadata)
        self.include_path = include_path
        self._factory = _Factory(meta=metadata)
        held: dict[str, Entry] = vars(self)["_index"]
        self._groups = LengthGroups(held, metadata.get("lengths"))
        self._index = self._tasks = LazyIndex(held, with_defaults=waits)

    @property
    def all_tasks(self) -> list[str]:
        """All names."""
        return self._names(*Kind)

    @property
    def all_groups(self) -> list[str]:
        """Names of groups."""
        return self._names(Kind.GROUP)

    @property
    def all_subtasks(self) -> list[str]:
        """Names of tasks."""
        return self._names(Kind.TASK, Kind.PY_TASK)

    @property
    def all_tags(self) -> list[str]:
        """Names of tags."""
        return self._names(Kind.TAG)

    def _names(self, *kinds: Kind) -> list[str]:
        return sorted(name for name, entry in self._tasks.items() if entry.kind in kinds)

    def match_tasks(self, task_list: list[str]) -> list[str]:
        """Return the names that match the patterns, and check the options of the length groups among them.

        Args:
            task_list: Names and glob patterns. A pattern that matches a length group as well as its lengths stands
                for the group, because lm-eval runs no task twice.

        Returns:
            The names; the lengths of a group are in ascending order.

        Raises:
            MesaError: An option of a matched length group is wrong.
        """
        for name in task_list:
            self._groups.add(name)
        found = {self._tasks[name].name for name in task_list if name in self._tasks.held}
        unknown = [name for name in task_list if name not in found]
        names = sorted({*found, *(pattern_match(unknown, self.all_tasks) if unknown else ())})
        covered = self._groups.tasks(names)
        names = [name for name in names if name in task_list or name not in covered]
        for name in names:
            self._groups.check(name, self.metadata or {})
        return names

    def length_tasks(self, name: str) -> set[str]:
        """Return the tasks of single lengths that a name of a length group, or of one, stands for."""
        return self._groups.tasks([name]) or ({name} if self._groups.option_names(name) is not None else set())

    def unknown_task(self, name: str) -> UsageError:
        """Return the error for a name that no task has."""
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        return UsageError(f"unknown task {shown!r}{self._groups.hint(name) or self._near(name)}")

    def _near(self, name: str) -> str:
        own = sorted(OWN_GROUPS)
        near = get_close_matches(name, own, n=1) or get_close_matches(name, self.all_tasks, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{hint} (allowed: {', '.join(own)} and what `lm_eval ls tasks` lists)"

    def option_names(self, task_list: Sequence[Any]) -> set[str] | None:
        """Return the options that length groups have; None where one of the tasks is of no length group.

        Args:
            task_list: What lm-eval loads.
        """
        options = [self._groups.option_names(task) if isinstance(task, str) else None for task in task_list]
        return None if None in options else {name for names in options for name in names or ()}

    def load(self, task_list: Any) -> Any:
        """Load tasks and groups, which are then evaluated together.

        Where a length group's tasks use documents that all lengths share, these are the lengths among `task_list`,
        unless the user's metadata say which.

        Args:
            task_list: A name or what else lm-eval loads, or a list of such.
        """
        self._factory.asked = self._groups.asked_lengths(task_list if isinstance(task_list, list) else [task_list])
        return super().load(task_list)

    def _load_spec(self, spec: Any) -> Any:
        if isinstance(spec, str):
            self._groups.add(spec)
            self._groups.check(spec, self.metadata or {})
            if self._groups.hint(spec) and spec not in self._tasks:
                raise self.unknown_task(spec)
        return super()._load_spec(spec)
