"""Cut a sweep into shards: ranges of samples of one task, for one model and method."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from lm_eval.api.task import Task as LMTask
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.utils import hash_string

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.harness.task_manager import TaskManager, split_length_name
from mesa_lm.pipelines.config import MethodChoice, Model, Sweep, Task
from mesa_lm.pipelines.secrets import without_secrets

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
        documents: A digest of the documents that the samples are made of.
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
    documents: str

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
    if sweep.include_path is not None and not sweep.include_path.expanduser().is_dir():
        raise UsageError(f"include_path: there is no folder {str(sweep.include_path)!r}")
    _task_manager.cache_clear()  # data may have changed since an earlier plan
    shards: list[Shard] = []
    for place, model in enumerate(sweep.models):
        for number, task in enumerate(sweep.tasks):
            leaves = load_leaves(sweep, model, task)
            for method, choice in enumerate(sweep.methods):
                for name, leaf in leaves.items():
                    shards += _shards(sweep, (place, method, number), model, choice, name, leaf)
    return sorted(shards, key=lambda shard: (-shard.cost, shard.model, shard.method, shard.leaf, shard.start))


class LoadedTasks(TaskManager):
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
            self._whole = super().load(self.match_tasks([self._asked]))
        names = spec if isinstance(spec, list) else [spec]
        tasks = self._whole["tasks"]
        if all(name in tasks for name in names):
            return {"tasks": {name: tasks[name] for name in names}, "groups": {}, "group_map": {}}
        return self._whole


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


def task_manager(sweep: Sweep, model: Model, task: Task) -> TaskManager:
    """Return lm-eval's task manager with the options of one entry of a sweep, as its command would make it.

    Always the same one, so that the documents are, too. They do not depend on the method.
    """
    metadata = json.dumps({**model.arguments, **sweep.metadata(task)}, sort_keys=True, default=str)
    folder = sweep.include_path and sweep.include_path.expanduser()
    return _task_manager(task.task, sweep.seed, folder, metadata)


@cache
def _task_manager(entry: str, seed: int, include_path: Path | None, metadata: str) -> TaskManager:
    return LoadedTasks(entry, seed, include_path=include_path, metadata=json.loads(metadata))


def documents_digest(leaf: LMTask, start: int, stop: int) -> str:
    """Return a digest of the documents of some samples."""
    digest: str = hash_string(json.dumps([leaf.eval_docs[i] for i in range(start, stop)], default=str))
    return digest


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
    settings = _settings(leaf)
    for start, stop in _ranges(costs, sum(costs) if whole else sweep.shard_tokens):
        documents = documents_digest(leaf, start, stop)
        content = {
            "model": [without_secrets(model.model_dump()), weights(model), sweep.batch_size],
            "method": choice.model_dump(),
            "task": [task.model_dump(), sweep.metadata(task), leaf.VERSION, settings],
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
            documents=documents,
        )


@lru_cache(maxsize=64)
def _content(path: Path, size: int, changed_ns: int) -> str:
    """Return a digest of a file, which is kept until the file changes; of large ones size and date have to do."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if size <= READ_BYTES else f"{size} {changed_ns}"


def weights(model: Model) -> list[tuple[str, str]]:
    """Return what tells a model from another one of its name: a folder's files, or the commit on the hub."""
    folder = MODEL_PATH if model.pretrained is None else Path(model.pretrained).expanduser()
    if not folder.is_dir():
        return [("commit", _commit(str(model.pretrained), model.revision, model.args.get("token")))]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, _content(path, path.stat().st_size, path.stat().st_mtime_ns)) for path in files]


@lru_cache(maxsize=64)
def _commit(name: str, revision: str, token: str | None) -> str:
    """Return the commit that a branch or tag on the hub stands for, or did when last seen; "" if that is unknown."""
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, token=token)).parent.name
    except (OSError, ValueError, HfHubHTTPError):
        return ""  # whoever loads the model says what is wrong


def _settings(leaf: LMTask) -> str:
    """Return a digest of how a task asks and scores; its functions count by their source."""
    described = {name: value for name, value in leaf.dump_config().items() if name != "metadata"}
    text = json.dumps(described, sort_keys=True, default=str)
    digest: str = hash_string(re.sub(r" at 0x[0-9a-f]+", "", text))
    return digest


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
