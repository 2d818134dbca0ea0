"""Let lm-eval find this project's tasks, and run a group once per length.

A group's YAML makes a *length group* by three entries of its metadata:

    lengths: [512, 1024]              # tokens; the default, `--metadata '{"lengths": [...]}'` changes it
    length_task: _length.yaml         # beside the group's YAML: the task to run at each length, without `task:`
    check: !function utils.check      # called with the user's metadata, raises MesaError; runs before a model is loaded

The task's YAML may name default `lengths` in its metadata, too, if all lengths are to use the same documents; its
function is then given those that are evaluated together.

Each length is a task `<group>_<label>`, labelled `4k` for multiples of 1024 and by its number otherwise. Any length can
be asked for by name, with either label. The task's `custom_dataset` function is given it as `length=`.
"""

import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

import lm_eval.tasks
from datasets import Features, List, Value
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.manager import TaskManager as StockTaskManager
from lm_eval.utils import pattern_match

from mesa_lm.errors import MesaError, UsageError
from mesa_lm.harness.lm_eval_caches import key_requests_by_content


def tasks_path() -> Path:
    """Return the folder of this project's tasks."""
    return (Path(__file__).parents[1] / "tasks").resolve()


def length_name(group: str, length: int) -> str:
    """Return the name of the task that runs a length group at one length.

    Args:
        group: Name of the group.
        length: Tokens.

    Returns:
        For example `passkey_long_4k` for 4096 and `passkey_long_3000` for 3000.
    """
    label = f"{length // 1024}k" if length % 1024 == 0 else str(length)
    return _LengthName(f"{group}_{label}")


def split_length_name(name: str) -> tuple[str, int]:
    """Return the group and the length, in tokens, that a name asks for; the length is 0 where it names none."""
    match = re.fullmatch(r"(.+)_([1-9]\d*)(k?)", name)
    if match is None:
        return name, 0
    group, number, thousand = match.groups()
    return group, int(number) * (1024 if thousand else 1)


class _LengthName(str):
    """A task name that sorts by length, because lm-eval sorts the rows of its results table by name."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return split_length_name(self) < split_length_name(other)


@dataclass
class _LengthEntry(Entry):
    """A group or task of lm-eval's index with something added to what its YAML says."""

    added: dict[str, Any] = field(default_factory=dict)


class _Index(MutableMapping[str, Entry]):
    """An index of tasks that turns to lm-eval's own only for what it does not hold itself.

    Reading the 13,000 files of those takes seconds, which a run of this project's tasks can do without.

    Attributes:
        held: What has been indexed so far.
    """

    def __init__(self, held: dict[str, Entry], with_defaults: bool) -> None:
        self.held, self._is_whole = held, not with_defaults

    def _complete(self) -> dict[str, Entry]:
        if not self._is_whole:
            self._is_whole = True
            self.held = {**_stock_index(), **self.held}
        return self.held

    def __getitem__(self, name: str) -> Entry:
        return (self.held if name in self.held else self._complete())[name]

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.held[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._complete()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._complete())

    def __len__(self) -> int:
        return len(self._complete())


@cache
def _stock_index() -> dict[str, Entry]:
    """Return lm-eval's own tasks, read once per process."""
    index: dict[str, Entry] = TaskIndex.build([Path(lm_eval.tasks.__file__).parent])
    return index


class _Factory(TaskFactory):
    """lm-eval's factory of tasks and groups, minding what `_LengthEntry` adds."""

    def __init__(self, *, meta: dict[str, Any] | None = None) -> None:
        super().__init__(meta=meta)
        self.asked: Mapping[str, list[int]] = {}  # lengths by length group, see TaskManager.load

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        if isinstance(entry, _LengthEntry):
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
        task = super()._build_task(entry, overrides)
        key_requests_by_content(task)
        return task


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
        _report_errors_in_one_line()
        chosen = [include_path] if isinstance(include_path, str | Path) else include_path or []
        others = [path for path in chosen if Path(path).resolve() != tasks_path()]
        # With tasks of the user's, lm-eval says which of its own they replace.
        waits = include_defaults and not others
        super().__init__(verbosity, [tasks_path(), *others], include_defaults and not waits, metadata)
        self.include_path = include_path
        self._factory = _Factory(meta=metadata)
        held: dict[str, Entry] = vars(self)["_index"]
        self._index = self._tasks = _Index(held, with_defaults=waits)
        self._length_groups: dict[str, Entry] = {
            name: entry
            for name, entry in held.items()
            if entry.kind is Kind.GROUP and "length_task" in (entry.cfg.get("metadata") or {})
        }
        self._children = {
            name: [length_name(name, length) for length in self._lengths(entry)]
            for name, entry in self._length_groups.items()
        }
        for name, children in self._children.items():
            for child in children:
                self._add_length(child)
            self._tasks[name] = _LengthEntry(**vars(self._length_groups[name]), added={"task": children})

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
            self._add_length(name)
        found = {self._tasks[name].name for name in task_list if name in self._tasks.held}
        unknown = [name for name in task_list if name not in found]
        names = sorted({*found, *(pattern_match(unknown, self.all_tasks) if unknown else ())})
        covered = {child for name in names for child in self._children.get(name, ())}
        names = [name for name in names if name in task_list or name not in covered]
        for name in names:
            self._check(name)
        return names

    def load(self, task_list: Any) -> Any:
        """Load tasks and groups, which are then evaluated together.

        Where a length group's tasks use documents that all lengths share, these are the lengths among `task_list`,
        unless the user's metadata say which.

        Args:
            task_list: A name or what else lm-eval loads, or a list of such.
        """
        self._factory.asked = self.asked_lengths(task_list if isinstance(task_list, list) else [task_list])
        return super().load(task_list)

    def asked_lengths(self, specs: Sequence[Any]) -> dict[str, list[int]]:
        """Return the lengths that names of groups and of single lengths stand for, by length group."""
        lengths: dict[str, set[int]] = defaultdict(set)
        for spec in specs:
            for name in self._children.get(spec, [spec]) if isinstance(spec, str) else ():
                group, length = split_length_name(name)
                lengths[group].add(length)
        return {group: sorted(found) for group, found in lengths.items() if group in self._length_groups}

    def _load_spec(self, spec: Any) -> Any:
        if isinstance(spec, str):
            self._add_length(spec)
            self._check(spec)
        return super()._load_spec(spec)

    def _add_length(self, name: str) -> None:
        """Index a task of a length group, if that is what the name stands for."""
        group, length = split_length_name(name)
        if not length or group not in self._length_groups or name in self._tasks.held:
            return
        entry = self._length_groups[group]
        name = _LengthName(name)
        self._tasks[name] = _LengthEntry(
            name=name,
            kind=Kind.TASK,
            yaml_path=entry.yaml_path.parent / entry.cfg["metadata"]["length_task"],
            added={"task": name, "dataset_kwargs": {"length": length}},
        )

    def _lengths(self, group: Entry) -> list[int]:
        """Return the lengths to run a group at, in ascending order; wrong ones are left to `_check`."""
        chosen = (self.metadata or {}).get("lengths")
        lengths: list[int] = chosen if _is_lengths(chosen) else group.cfg["metadata"]["lengths"]
        return sorted(set(lengths))

    def _check(self, name: str) -> None:
        """Raise MesaError where the user's metadata does not suit the length group that a name belongs to."""
        group = self._length_groups.get(name) or self._length_groups.get(split_length_name(name)[0])
        if group is None:
            return
        metadata = self.metadata or {}
        if "lengths" in metadata and not _is_lengths(metadata["lengths"]):
            raise UsageError(
                f"{group.name}: lengths must be a list of whole numbers of tokens, each at least 1, "
                f"such as [4096, 8192]; found {metadata['lengths']!r}"
            )
        load_yaml(group.yaml_path)["metadata"]["check"](metadata)


def _is_lengths(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item > 0 for item in value)


def _report_errors_in_one_line() -> None:
    """Print a MesaError or Ctrl-C that ends the lm-eval command as one line; nothing else changes."""
    command = Path(sys.argv[0])
    in_command = command.stem in ("lm_eval", "lm-eval") or command.parts[-2:] == ("lm_eval", "__main__.py")
    if in_command and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_error


def _print_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, MesaError):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)  # what is kept has been said where it is known
    else:
        sys.__excepthook__(kind, error, traceback)
