"""Cut a sweep into shards: ranges of samples of one task, for one model and method."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task as LMTask
from lm_eval.utils import hash_string

from mesa_lm.demo import MODEL_PATH
from mesa_lm.discovery import TaskManager, split_length_name
from mesa_lm.errors import UsageError

from .config import MethodChoice, Model, Sweep, Task
from .secrets import without_secrets

PACKAGES = ("lm-eval", "mesa-lm", "torch", "transformers")
# Of a model's files, those up to this size are read to recognise them.
READ_BYTES = 64 * 2**20
CHARACTERS_PER_TOKEN = 4  # to estimate the cost of tasks that name no length


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Some samples of one task for one model and method.

    Args:
        key: Of its answers: a digest of everything that determines them.
        model: Place of the model in the sweep.
        method: Place of the method.
        task: Place of the task.
        leaf: The task of lm-eval itself, such as `passkey_long_4k`.
        length: Input length in tokens, None where the task names none.
        start: First sample.
        stop: One past the last.
        cost: Tokens, roughly.
    """

    key: str
    model: int
    method: int
    task: int
    leaf: str
    length: int | None
    start: int
    stop: int
    cost: int

    @property
    def group(self) -> str:
        """The leaf without its length."""
        return split_length_name(self.leaf)[0] if self.length else self.leaf


def plan(sweep: Sweep) -> list[Shard]:
    """Return the shards of a sweep, the costliest first.

    Builds every task's documents once per model, because their number, and for some tasks their text, depend on the
    model's tokenizer.

    Raises:
        MesaError: A task or an option is unknown or wrong.
    """
    shards: list[Shard] = []
    for place, model in enumerate(sweep.models):
        for number, task in enumerate(sweep.tasks):
            leaves = load_leaves(sweep, model, task)
            for method, choice in enumerate(sweep.methods):
                for name, leaf in leaves.items():
                    shards += _shards(sweep, (place, method, number), model, choice, name, leaf)
    return sorted(shards, key=lambda shard: (-shard.cost, shard.model, shard.method, shard.leaf, shard.start))


class LoadedTasks(TaskManager):
    """A task manager that builds a task, and with it its documents, only once.

    A single task has the documents that it has among all tasks of its entry of the sweep.
    """

    def __init__(self, entry: str, **options: Any) -> None:
        super().__init__(**options)
        self._asked = entry
        self._loaded: dict[tuple[str, ...], Any] = {}

    def asked_lengths(self, specs: Sequence[Any]) -> dict[str, list[int]]:
        """Return those of the whole entry, whichever of its tasks is loaded."""
        return super().asked_lengths(self.match_tasks([self._asked]))

    def load(self, spec: Any) -> Any:
        """See lm-eval's `TaskManager.load`."""
        names = tuple(spec) if isinstance(spec, list) else (str(spec),)
        if names not in self._loaded:
            self._loaded[names] = super().load(spec)
        return self._loaded[names]


def load_leaves(sweep: Sweep, model: Model, task: Task) -> dict[str, LMTask]:
    """Return the tasks of lm-eval that one entry of a sweep stands for, by name.

    Raises:
        UsageError: lm-eval knows no such task.
    """
    manager = task_manager(sweep, model, task)
    names = manager.match_tasks([task.task])
    if not names:
        near = get_close_matches(task.task, manager.all_tasks, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"lm-eval knows no task {task.task!r}; {hint}`lm_eval ls tasks` lists them")
    leaves: dict[str, LMTask] = manager.load(names)["tasks"]
    return leaves


def task_manager(sweep: Sweep, model: Model, task: Task, choice: MethodChoice | None = None) -> TaskManager:
    """Return lm-eval's task manager with the options of one entry of a sweep, as its command would make it.

    No task's documents depend on the method; its arguments only matter to what is saved about the task.
    """
    method = choice.arguments if choice else {}
    return LoadedTasks(task.task, metadata={**model.arguments, **method, **sweep.metadata(task)})


def sample_count(task: Task, leaf: LMTask) -> int:
    """Return how many samples of a task are evaluated."""
    count = len(leaf.eval_docs)
    return count if task.limit is None else min(task.limit, count)


def _shards(
    sweep: Sweep, place: tuple[int, int, int], model: Model, choice: MethodChoice, name: str, leaf: LMTask
) -> Iterable[Shard]:
    """Cut one leaf of one model and method."""
    task = sweep.tasks[place[2]]
    count = sample_count(task, leaf)
    group, labelled = split_length_name(name)
    length = (leaf.config.dataset_kwargs or {}).get("length") or (leaf.config.metadata or {}).get("length")
    length = length if isinstance(length, int) else (labelled if group == task.task else None) or None
    costs = [length or _tokens(leaf.eval_docs[i]) for i in range(count)]
    # Few-shot examples are drawn one sample after another: a task that has some is not cut.
    whole = bool(task.num_fewshot or leaf.config.num_fewshot)
    for start, stop in _ranges(costs, sum(costs) if whole else sweep.shard_tokens):
        documents = hash_string(json.dumps([leaf.eval_docs[i] for i in range(start, stop)], default=str))
        content = {
            "model": [without_secrets(model.model_dump()), weights(model), sweep.batch_size],
            "method": choice.model_dump(),
            "task": [task.model_dump(), sweep.metadata(task), leaf.VERSION],
            "range": [name, start, stop],
            "documents": documents,
            "seed": sweep.seed,
            "versions": {package: version(package) for package in PACKAGES},
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        yield Shard(
            key=digest[:16],
            model=place[0],
            method=place[1],
            task=place[2],
            leaf=str(name),
            length=length,
            start=start,
            stop=stop,
            cost=sum(costs[start:stop]),
        )


@lru_cache(maxsize=64)
def _content(path: Path, size: int, changed_ns: int) -> str:
    """Return a digest of a file, which is kept until the file changes; of large ones size and date have to do."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if size <= READ_BYTES else f"{size} {changed_ns}"


def weights(model: Model) -> list[tuple[str, str]]:
    """Return what tells a model's folder from what was there before a new training; nothing for one of the hub."""
    folder = MODEL_PATH if model.pretrained is None else Path(model.pretrained).expanduser()
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [(path.name, _content(path, path.stat().st_size, path.stat().st_mtime_ns)) for path in files]


def _ranges(costs: Sequence[int], most: int) -> Iterable[tuple[int, int]]:
    """Cut samples into ranges of about equal cost, none above `most` unless a single sample is."""
    pieces = max(1, -(-sum(costs) // max(1, most)))
    target = sum(costs) / pieces
    start, spent = 0, 0
    for stop, cost in enumerate(costs, start=1):
        spent += cost
        if spent >= target or stop == len(costs):
            yield start, stop
            start, spent = stop, 0


def _tokens(document: Any) -> int:
    return 1 + len(str(document)) // CHARACTERS_PER_TOKEN


def as_json(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """Return shards as plain values."""
    return [asdict(shard) for shard in shards]
