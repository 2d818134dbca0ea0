"""Cut a sweep into shards: ranges of samples of one task, for one model and method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs

from mesa_lm.errors import UsageError
from mesa_lm.lengths import split_length_name
from mesa_lm.pipelines.entry_tasks import entry_task_manager, forget_tasks, load_leaves
from mesa_lm.pipelines.settings import Sweep, TaskEntry
from mesa_lm.pipelines.shard_keys import answers_identity, documents_digest, evaluation_digest, shard_key

CHARACTERS_PER_TOKEN = 4  # to estimate the cost of tasks that name no length


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Some samples of one task for one model and method.

    Args:
        key: Of its answers: a digest of everything that determines them.
        model: Index of the model in the sweep.
        method: Index of the method.
        task: Index of the task.
        leaf: The task of lm-eval itself, such as `passkey_long_4k`.
        length: Input length in tokens, None where the task names none.
        start: First sample.
        stop: One past the last.
        cost: Tokens, roughly.
        documents: A digest of the documents that the samples are made of.
        sources: Digests of the sources that answers come from: this project's, and those of the task.
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
    sources: str

    @property
    def group(self) -> str:
        """The leaf without its length."""
        return split_length_name(self.leaf)[0] if self.length else self.leaf

    @property
    def entry(self) -> tuple[int, int, int]:
        """The indices of its model, method and task in the sweep."""
        return self.model, self.method, self.task

    def described(self, sweep: Sweep) -> str:
        """Return what it evaluates, for people."""
        model, method = sweep.models[self.model].name, sweep.methods[self.method].label
        return f"{model}, {method}, {self.leaf}, samples {self.start} to {self.stop - 1}"


def plan_shards(sweep: Sweep) -> list[Shard]:
    """Return the shards of a sweep, the costliest first.

    Builds every task's documents once per model, because their number, and for some tasks their text, depend on the
    model's tokenizer.

    Raises:
        MesaError: A task or an option is unknown or wrong.
    """
    if sweep.include_path is not None and not sweep.include_path.expanduser().is_dir():
        raise UsageError(f"include_path: there is no folder {str(sweep.include_path)!r}")
    forget_tasks()
    shards: list[Shard] = []
    evaluating = evaluation_digest()
    for model, described in enumerate(sweep.models):
        for task, entry in enumerate(sweep.tasks):
            manager = entry_task_manager(sweep, described, entry)
            for name, leaf in load_leaves(sweep, described, entry).items():
                shards += _cut(sweep, (model, task), str(name), leaf, f"{evaluating} {manager.sources(name)}")
    return sorted(shards, key=lambda shard: (-shard.cost, shard.model, shard.method, shard.leaf, shard.start))


def _cut(sweep: Sweep, indices: tuple[int, int], name: str, leaf: Task, sources: str) -> Iterator[Shard]:
    """Cut one task of lm-eval for one model, under every method."""
    model, task = indices
    entry = sweep.tasks[task]
    length = _length(entry, name, leaf)
    count = len(leaf.eval_docs) if entry.limit is None else min(entry.limit, len(leaf.eval_docs))
    costs = [length or _tokens(leaf.eval_docs[i]) for i in range(count)]
    # Few-shot examples, and tokens that are sampled, are drawn one after another: such a task is not cut.
    whole = bool(entry.num_fewshot or leaf.config.num_fewshot) or _samples_tokens(entry, leaf)
    ranges = list(_ranges(costs, sum(costs) if whole else sweep.shard_tokens))
    documents = [documents_digest(leaf, start, stop) for start, stop in ranges]
    for method, choice in enumerate(sweep.methods):
        identity = answers_identity(sweep, sweep.models[model], choice, entry, leaf, sources)
        for (start, stop), digest in zip(ranges, documents, strict=True):
            yield Shard(
                key=shard_key(identity, name, start, stop, digest),
                model=model,
                method=method,
                task=task,
                leaf=name,
                length=length,
                start=start,
                stop=stop,
                cost=sum(costs[start:stop]),
                documents=digest,
                sources=sources,
            )


def _samples_tokens(entry: TaskEntry, leaf: Task) -> bool:
    """Return whether answers are drawn at random, by lm-eval's rules."""
    if leaf.OUTPUT_TYPE != "generate_until":
        return False
    settings = normalize_gen_kwargs({**(leaf.config.generation_kwargs or {}), **entry.gen_kwargs})
    return bool(settings["do_sample"])


def _length(entry: TaskEntry, name: str, leaf: Task) -> int | None:
    """Return the input length in tokens that a task or its name says, if they do."""
    said = (leaf.config.dataset_kwargs or {}).get("length") or (leaf.config.metadata or {}).get("length")
    if isinstance(said, int):
        return said
    group, labelled = split_length_name(name)
    return (labelled if group == entry.task else None) or None


def _tokens(document: Any) -> int:
    return 1 + len(str(document)) // CHARACTERS_PER_TOKEN


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
