"""Groups of tasks that differ in length only, and run once per length.

A group's YAML makes a *length group* by three entries of its metadata:

    lengths: [512, 1024]              # tokens; the default, `--metadata '{"lengths": [...]}'` changes it
    length_task: _length.yaml         # beside the group's YAML: the task to run at each length, without `task:`
    check: !function utils.check      # called with the user's metadata, raises MesaError; runs before a model is loaded

and may have `summary`, see `mesa_lm.harness.group_summaries`.

The task's YAML may name default `lengths` in its metadata, too, if all lengths are to use the same documents; its
function is then given those that are evaluated together.

Each length is a task `<group>_<label>`, labelled `4k` for multiples of 1024 and by its number otherwise. Any length can
be asked for by name, with either label. The task's `custom_dataset` function is given it as `length=`.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_name, split_length_name
from mesa_lm.models.memory import free_bytes

# Four characters, kept in the table of documents, in the requests made of them and in the samples that are logged; and
# the encoded prompt.
BYTES_PER_TOKEN = 16


class LengthName(str):
    """A task name that sorts by length, because lm-eval sorts the rows of its results table by name."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return split_length_name(self) < split_length_name(other)


@dataclass
class LengthEntry(Entry):
    """A group or task of lm-eval's index with something added to what its YAML says."""

    added: dict[str, Any] = field(default_factory=dict)


class LengthGroups:
    """The length groups of an index of tasks."""

    def __init__(self, index: MutableMapping[str, Entry], lengths: object) -> None:
        """Add the tasks of each group's lengths to the index.

        Args:
            index: lm-eval's entries by name; what is found later is added to it.
            lengths: Those that the user asks for; where they are none or wrong, each group's own.
        """
        self._index = index
        self._groups = {
            name: entry
            for name, entry in index.items()
            if entry.kind is Kind.GROUP and "length_task" in (entry.cfg.get("metadata") or {})
        }
        self._tasks: dict[str, list[str]] = {}
        for name, entry in self._groups.items():
            own = lengths if _is_lengths(lengths) else entry.cfg["metadata"]["lengths"]
            self._tasks[name] = [LengthName(length_name(name, length)) for length in sorted(set(own))]
            for task in self._tasks[name]:
                self.add(task)
            index[name] = LengthEntry(**vars(entry), added={"task": self._tasks[name]})

    def add(self, name: str) -> None:
        """Add a task of a length group to the index, if that is what the name stands for and it is not there yet."""
        group, length = split_length_name(name)
        if not length or group not in self._groups or name in self._index:
            return
        entry = self._groups[group]
        name = LengthName(name)
        self._index[name] = LengthEntry(
            name=name,
            kind=Kind.TASK,
            yaml_path=entry.yaml_path.parent / entry.cfg["metadata"]["length_task"],
            added={"task": name, "dataset_kwargs": {"length": length}},
        )

    def tasks(self, names: Iterable[str]) -> set[str]:
        """Return the tasks that the groups among some names run."""
        return {task for name in names for task in self._tasks.get(name, ())}

    def asked_lengths(self, specs: Sequence[Any]) -> dict[str, list[int]]:
        """Return the lengths that names of groups and of single lengths stand for, by length group."""
        lengths: dict[str, set[int]] = defaultdict(set)
        for spec in specs:
            for name in self._tasks.get(spec, [spec]) if isinstance(spec, str) else ():
                group, length = split_length_name(name)
                lengths[group].add(length)
        return {group: sorted(found) for group, found in lengths.items() if group in self._groups}

    def option_names(self, name: str) -> set[str] | None:
        """Return the options of the length group that a name is or belongs to; None if there is no such group.

        They are the arguments of the task's function that lm-eval does not fill in itself, and `lengths`.
        """
        group = self._of(name)
        if group is None:
            return None
        task = load_yaml(group.yaml_path.parent / group.cfg["metadata"]["length_task"])
        return {"lengths", "tokenizer", *inspect.signature(task["custom_dataset"]).parameters} - {
            "length",
            "model_args",
        }

    def hint(self, name: str) -> str:
        """Return what may be meant by a name that begins with a length group's but is not one of its tasks; "" else."""
        group, _, label = name.rpartition("_")
        if group not in self._groups or split_length_name(name)[1]:
            return ""
        number = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(k?)", label.lower())
        tokens = round(float(number[1]) * (1024 if number[2] else 1)) if number else 0
        hint = f"; did you mean {length_name(group, tokens)!r}?" if tokens else ""
        return (
            f"{hint} (allowed: a whole number of tokens, such as {group}_3000, or of 1024 tokens, such as {group}_4k)"
        )

    def _of(self, name: str) -> Entry | None:
        return self._groups.get(name) or self._groups.get(split_length_name(name)[0])

    def check(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Check the user's metadata for the length group that a name is or belongs to, if there is one.

        Args:
            name: Of a group or task.
            metadata: Options of the tasks, together with the arguments of the model.

        Raises:
            MesaError: They do not suit it.
        """
        group = self._of(name)
        if group is None:
            return
        if "lengths" in metadata and not _is_lengths(metadata["lengths"]):
            raise UsageError(
                f"{group.name}: lengths must be a list of whole numbers of tokens, each at least 1, "
                f"such as [4096, 8192]; found {metadata['lengths']!r}"
            )
        load_yaml(group.yaml_path)["metadata"]["check"](metadata)
        self._check_memory(name, group, metadata)

    def _check_memory(self, name: str, group: Entry, metadata: Mapping[str, Any]) -> None:
        """Refuse prompts that would not fit into memory, of which lengths set no limit."""
        task = load_yaml(group.yaml_path.parent / group.cfg["metadata"]["length_task"], resolve_func=False)
        number = metadata.get("num_samples") or (task.get("metadata") or {}).get("num_samples") or 1
        tokens = sum(split_length_name(task)[1] for task in self._tasks.get(name, [name]))
        needed, free = tokens * number * BYTES_PER_TOKEN, free_bytes(torch.device("cpu"))
        if needed > free:
            raise UsageError(
                f"{name}: {tokens:,} tokens in each of {number:,} samples take about {needed / 2**30:,.0f} "
                f"GiB of memory; {free / 2**30:.1f} GiB are free"
            )


def _is_lengths(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item > 0 for item in value)
