"""Measure what a large sweep costs everything but its workers: planning, memory, files, going on, status, leaderboard.

python -m mesa_lm.pipelines.development.large_sweep --models 20 --methods 15 --tasks 10 --lengths 16 --shards 100000
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from mesa_lm.pipelines.lm_eval_output import printed_to
from mesa_lm.pipelines.merge import EntryResults, keys_digest, samples_name
from mesa_lm.pipelines.outcome import Outcome
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard, plan_shards
from mesa_lm.pipelines.status import SweepFolder
from mesa_lm.pipelines.store import Store
from mesa_lm.pipelines.sweep_results import SweepResults
from mesa_lm.reporting.ranking import rank
from mesa_lm.reporting.results import read

TASK = "passkey_long"
SAMPLES = 20  # of a leaf's samples file


class Opened:
    """Counts files that this process opens, whoever opens them."""

    def __init__(self) -> None:
        self.count = 0
        sys.addaudithook(self._note)

    def _note(self, event: str, _: Any) -> None:
        self.count += event == "open"


def made_sweep(folder: Path, models: int, methods: int, tasks: int, lengths: int) -> Sweep:
    """Return a sweep of as many models, methods, tasks and lengths, whose inputs are short."""
    return Sweep.model_validate(
        {
            "name": "large",
            "out": folder,
            "models": [{"args": {"max_length": 4096 + number}} for number in range(models)],
            "methods": [{"method": "rerope", "window": 100 + number} for number in range(methods)],
            "tasks": [{"task": TASK, "metadata": {"num_samples": 2 + number}} for number in range(tasks)],
            "lengths": [300 + number for number in range(lengths)],
        }
    )


def planned_quietly(sweep: Sweep, log: Path) -> list[Shard]:
    """Return the shards of a sweep; what lm-eval prints goes to a file."""
    with printed_to(log):
        return plan_shards(sweep)


def cut(shards: list[Shard], count: int) -> list[Shard]:
    """Return at least as many shards, each of a part of the samples of one that was planned."""
    parts = -(-count // len(shards))
    return [replace(shard, key=f"{shard.key}{part:02x}", start=part) for shard in shards for part in range(parts)]


def store_all(sweep: Sweep, shards: list[Shard], store: Store) -> None:
    """Store answers of all shards and results files of all entries, as a sweep that has ended leaves them."""
    entries: dict[tuple[int, int, int], list[Shard]] = {}
    for shard in shards:
        entries.setdefault(shard.entry, []).append(shard)
        store.write_shard(shard.key, {"responses": {"0": [["12345"]]}, "peak_bytes": None, "seconds": 1.0})
    for own in entries.values():
        results = EntryResults(sweep, own, store)
        results.folder.mkdir(parents=True)
        results.path.write_text(json.dumps(made_results(sweep, results)))
        for leaf, (shard, *_) in results.shards.items():
            results.path.with_name(samples_name(results.path, leaf)).touch()
            lines = [made_sample(number) for number in range(SAMPLES)]
            results.path.with_name(samples_name(results.path, made_name(shard))).write_text("\n".join(lines))


def made_name(shard: Shard) -> str:
    """Return a name of a task of its own, where the sweep has one task with many options."""
    return f"task{shard.task}_{shard.length}"


def made_results(sweep: Sweep, results: EntryResults) -> dict[str, Any]:
    """Return what a results file holds of scores."""
    lengths = {made_name(shards[0]): shards[0].length for shards in results.shards.values()}
    method = sweep.methods[results.method]
    own = {"method": method.method, "parameters": method.parameters, "train_length": 512}
    return {
        "results": {leaf: {"alias": leaf, "acc,none": 0.5, "acc_stderr,none": 0.1} for leaf in lengths},
        "configs": {leaf: {"task": leaf, "dataset_kwargs": {"length": length}} for leaf, length in lengths.items()},
        "group_subtasks": {f"task{results.task}": list(lengths)},
        "higher_is_better": {leaf: {"acc": True} for leaf in lengths},
        "n-samples": {leaf: {"original": SAMPLES, "effective": SAMPLES} for leaf in lengths},
        "config": {
            "model": "mesa-hf",
            "model_args": {"pretrained": f"org/model-{results.model}", **method.arguments},
            "mesa_lm": own,
        },
        "date": 1.0,
        "sweep": {
            "leaves": {leaf: {"keys": keys_digest(own)} for leaf, own in results.shards.items()},
            "out_of_memory": [],
            "partial": False,
        },
    }


def made_sample(number: int) -> str:
    """Return a line of a samples file."""
    about = {"doc_id": number, "doc_hash": f"{number}", "target_hash": "t", "filter": "none", "target": "right"}
    return json.dumps(about | {"acc": float(number % 2), "filtered_resps": ["none"]})


def main(
    models: int = 20, methods: int = 15, tasks: int = 10, lengths: int = 16, shards: int = 100_000, folder: str = ""
) -> None:
    """Print processor seconds, files opened and the peak of memory so far, step by step."""
    opened = Opened()

    def measured(what: str, step: Callable[[], Any]) -> Any:
        files, cpu = opened.count, time.process_time()
        result = step()
        spent, count = time.process_time() - cpu, opened.count - files
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{what}: {spent:.1f} s, {count} files opened, peak {peak_mib} MiB", flush=True)
        return result

    with tempfile.TemporaryDirectory(dir=folder or None) as place:
        sweep = made_sweep(Path(place) / "out", models, methods, tasks, lengths)
        store = Store(sweep.out)
        measured("nothing yet", lambda: None)
        planned = measured("plan", partial(planned_quietly, sweep, Path(place) / "log"))
        plan = cut(planned, shards)
        print(f"{len(plan)} shards of {len(planned)} lengths of models, methods and tasks")
        described = {"sweep": sweep.model_dump(mode="json"), "shards": [asdict(shard) for shard in plan]}
        measured("write the plan", partial(store.write, "plan", described))
        del described
        measured("store everything", partial(store_all, sweep, plan, store))
        measured("go on", SweepResults(sweep, plan, store, Outcome()).start)
        measured("status", lambda: SweepFolder(sweep.out).status())
        measured("leaderboard", lambda: rank(read([store.results])))


if __name__ == "__main__":
    typer.run(main)
