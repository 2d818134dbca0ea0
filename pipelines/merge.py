"""Merge shards into results files of lm-eval: its own evaluation, with a model that repeats the stored responses.

Metrics, standard errors, groups and the files themselves are thus what a single `lm_eval` run would have written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.evaluator_utils import EvalAcc, aggregate_groups
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_model_name

from mesa_lm.pipelines.entry_tasks import entry_task_manager, load_leaves
from mesa_lm.pipelines.lm_eval_output import machine_asked_once
from mesa_lm.pipelines.replay import Replay
from mesa_lm.pipelines.secrets import without_secrets
from mesa_lm.pipelines.settings import ModelEntry, Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store
from mesa_lm.reporting.files import write_atomically

logger = logging.getLogger(__name__)

# What `lm_eval` passes where the user says nothing.
STOCK = EvaluatorConfig()
# What lm-eval saves of every task, by its name in a results file and in lm-eval's own collection of results.
OF_TASK = {
    "results": "metrics",
    "configs": "configs",
    "versions": "versions",
    "n-shot": "num_fewshot",
    "higher_is_better": "higher_is_better",
    "n-samples": "n_samples",
}


class EntryResults:
    """The results file of one model, method and task, which grows leaf by leaf and is valid at every moment.

    The file is the state: whoever opens it again goes on from the leaves whose shards are the same.

    Attributes:
        path: The file, which is not there as long as no leaf is merged.
        merged: The leaves that are in it.
    """

    def __init__(self, sweep: Sweep, shards: Sequence[Shard], store: Store) -> None:
        """Look at what is there.

        Args:
            sweep: The sweep.
            shards: All shards of one model, method and task.
            store: Its folder.
        """
        self.sweep, self.store = sweep, store
        self.model, self.method, self.task = shards[0].entry
        self.entry = sweep.tasks[self.task]
        self.shards: dict[str, list[Shard]] = {}
        for shard in sorted(shards, key=lambda shard: (shard.length or 0, shard.leaf, shard.start)):
            self.shards.setdefault(shard.leaf, []).append(shard)
        model = sweep.models[self.model]
        self.arguments = {**model.arguments, **sweep.methods[self.method].arguments}
        self.folder = store.results / f"{self.model}-{self.method}-{self.task}" / model_folder(model)
        self.path, self.content = self._opened()

    @property
    def merged(self) -> set[str]:
        """The leaves that are in the file."""
        return set(self.content["sweep"]["leaves"]) if self.content else set()

    def _opened(self) -> tuple[Path, dict[str, Any]]:
        """Return the newest results file that holds leaves of these shards alone, and its content; else a new one."""
        for path in sorted(self.folder.glob("results_*.json"), reverse=True):
            try:
                content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
                leaves = content["sweep"]["leaves"]
                if all(self._is_current(path, name, leaf) for name, leaf in leaves.items()):
                    return path, content
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                logger.warning("%s is damaged; its shards are merged again", path)
        return self.folder / f"results_{datetime.now().isoformat().replace(':', '-')}.json", {}

    def _is_current(self, path: Path, name: str, leaf: Mapping[str, Any]) -> bool:
        samples = path.with_name(_samples_name(path, name))
        return name in self.shards and leaf["keys"] == _keys_digest(self.shards[name]) and samples.is_file()

    def forget_others(self) -> None:
        """Remove what earlier sources, samples or sweeps left in the place of these results; their shards are kept."""
        own = {self.path, *(self.path.with_name(_samples_name(self.path, leaf)) for leaf in self.merged)}
        for path in self.folder.parent.rglob("*"):
            if path.is_file() and path not in own:
                path.unlink(missing_ok=True)

    def add(self, names: Iterable[str], out_of_memory: Iterable[str] = ()) -> bool:
        """Merge leaves whose shards are all stored.

        Args:
            names: The leaves; those that are merged already, or whose answers turn out damaged, are left out.
            out_of_memory: Leaves of this entry that ran out of memory.

        Returns:
            Whether all of them are in the file now.

        Raises:
            OSError: The results cannot be written; those of an earlier merge stay as they are.
        """
        names = list(names)
        for name in names:
            if name not in self.merged:
                payloads = [self.store.read_shard(shard.key) for shard in self.shards[name]]
                if None not in payloads:
                    self._add_leaf(name, [payload for payload in payloads if payload is not None])
        self._describe(set(out_of_memory))
        self._write()
        return self.merged >= set(names)

    def is_behind(self, out_of_memory: set[str]) -> bool:
        """Tell whether the file names other leaves than these that ran out of memory."""
        missing = set(self.shards) - self.merged
        return bool(self.content) and self.content["sweep"]["out_of_memory"] != sorted(out_of_memory & missing)

    def _add_leaf(self, name: str, payloads: Sequence[Mapping[str, Any]]) -> None:
        """Evaluate the stored answers of a leaf, write its samples, and take its values in; the file is not written."""
        truncated = sum(payload["model_info"]["mesa_lm"]["truncated_samples"] for payload in payloads)
        found = self._evaluated(name, payloads, truncated)
        samples = found.pop("samples")[name]
        hashes = (sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
        task_hash = hash_string("".join(hashes))
        self._write_samples(name, samples)
        if not self.content:
            shared = {key: value for key, value in found.items() if key not in OF_TASK}
            self.content = {key: {} for key in OF_TASK} | shared
            self.content |= {"task_hashes": {}, "sweep": {"leaves": {}, "costs": {}}}
            self.content["config"] = without_secrets({**found["config"], "model": "mesa-hf"})
        for key in OF_TASK:
            self.content[key][name] = found[key][name]
        described = self.content["configs"][name]
        arguments = self.sweep.methods[self.method].arguments
        described["metadata"] = without_secrets({**(described.get("metadata") or {}), **arguments})
        self.content["task_hashes"][name] = task_hash
        self.content["sweep"]["costs"][name] = _costs(payloads)
        self.content["sweep"]["leaves"][name] = {
            "keys": _keys_digest(self.shards[name]),
            "shards": len(payloads),
            "seconds": sum(payload["seconds"] for payload in payloads),
            "truncated": truncated,
        }

    def _evaluated(self, name: str, payloads: Sequence[Mapping[str, Any]], truncated: int) -> dict[str, Any]:
        """Return lm-eval's results of the stored answers of one leaf."""
        responses: dict[str, Any] = {}
        for payload in payloads:
            responses |= payload["responses"]
        entry, template = self.entry, self.entry.apply_chat_template
        manager = entry_task_manager(self.sweep, self.sweep.models[self.model], entry)
        with machine_asked_once():
            results: dict[str, Any] | None = simple_evaluate(
                model=Replay({name: responses}, payloads[0], truncated, manager.chat if template else None),
                model_args=self.arguments,
                tasks=[name],
                **entry.evaluation,
                batch_size=self.sweep.batch_size,
                device=STOCK.device,
                limit=None if entry.limit is None else float(entry.limit),  # as lm_eval's command has it
                log_samples=True,
                random_seed=self.sweep.seed,
                task_manager=manager,
            )
        assert results is not None
        return results

    def _describe(self, out_of_memory: set[str]) -> None:
        """Bring up to date what the file says of all leaves together."""
        if not self.content:
            return
        leaves = self.content["sweep"]["leaves"]
        missing = set(self.shards) - set(leaves)
        out_of_memory &= missing
        names = [name for name in load_leaves(self.sweep, self.sweep.models[self.model], self.entry) if name in leaves]
        manager = entry_task_manager(self.sweep, self.sweep.models[self.model], self.entry)
        groups = {} if missing else manager.load([self.entry.task])["groups"]
        collected = EvalAcc(groups=groups)
        for key, field in OF_TASK.items():
            getattr(collected, field).update({name: self.content[key][name] for name in names})
        self.content = {**self.content, **aggregate_groups(collected)._to_eval_results()}
        self.content["sweep"] = {
            "name": self.sweep.name,
            "partial": bool(missing - out_of_memory),
            "missing": sorted(missing),
            "out_of_memory": sorted(out_of_memory),
            "shards": sum(leaf["shards"] for leaf in leaves.values()),
            "seconds": sum(leaf["seconds"] for leaf in leaves.values()),
            "costs": {name: self.content["sweep"]["costs"][name] for name in names},
            "leaves": {name: leaves[name] for name in names},
        }
        own = self.content["config"]["mesa_lm"]
        own["truncated_samples"] = sum(leaf["truncated"] for leaf in leaves.values())
        tracker = self._tracker(self.content["sweep"]["seconds"]).general_config_tracker
        tracker.log_end_time()
        self.content |= {name: getattr(tracker, name) for name in tracker.__dataclass_fields__}

    def _tracker(self, seconds: float) -> EvaluationTracker:
        """Return what writes lm-eval's results files, as its command has it after so many seconds."""
        tracker = EvaluationTracker(output_path=str(self.folder.parent / ".part"))
        own = tracker.general_config_tracker
        own.start_time = time.perf_counter() - seconds
        entry, model = self.entry, self.sweep.models[self.model]
        manager, template = entry_task_manager(self.sweep, model, entry), entry.apply_chat_template
        own.log_experiment_args(
            model_source="mesa-hf",
            model_args=self.arguments,
            system_instruction=entry.system_instruction,
            chat_template=manager.chat.chat_template(template) if template else None,
            fewshot_as_multiturn=entry.evaluation["fewshot_as_multiturn"],
        )
        if model.pretrained is None:  # lm-eval would draw a name
            own.model_name = own.model_name_sanitized = model.name
        return tracker

    def _write_samples(self, name: str, samples: list[dict[str, Any]]) -> None:
        """Write the samples of a leaf as lm-eval does, whole or not at all; it says nothing of what it cannot write."""
        tracker = self._tracker(0.0)
        tracker.date_id = self.path.stem.removeprefix("results_")
        part = Path(tracker.output_path)
        shutil.rmtree(part, ignore_errors=True)
        try:
            tracker.save_results_samples(task_name=name, samples=samples)
            written = next(part.rglob("samples_*.jsonl"), None)
            if written is None or written.read_bytes().count(b"\n") != len(samples):
                raise OSError(f"the samples of {name} could not be written as a whole")
            self.folder.mkdir(parents=True, exist_ok=True)
            written.replace(self.path.with_name(_samples_name(self.path, name)))
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write(self) -> None:
        if self.content:
            text = json.dumps(self.content, indent=2, default=handle_non_serializable, ensure_ascii=False)
            write_atomically(self.path, text)


def model_folder(model: ModelEntry) -> str:
    """Return the name of the folder of a model's results: a model of this machine is not called by its whole path."""
    path = Path(model.name).expanduser()
    if not path.is_dir():
        name: str = sanitize_model_name(model.name)
        return name
    path = path.resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _samples_name(results: Path, leaf: str) -> str:
    return f"samples_{leaf}_{results.stem.removeprefix('results_')}.jsonl"


def _keys_digest(shards: Sequence[Shard]) -> str:
    return hashlib.sha256(" ".join(shard.key for shard in shards).encode()).hexdigest()[:16]


def _costs(payloads: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what one leaf's shards cost: peak memory in bytes, where it is known, and seconds per sample."""
    samples = sum(len(payload["responses"]) for payload in payloads)
    peaks = [payload["peak_bytes"] for payload in payloads if payload["peak_bytes"] is not None]
    time_s = sum(payload["evaluation_s"] for payload in payloads) / samples
    return {"sample_s": time_s, **({"peak_bytes": max(peaks)} if peaks else {})}
