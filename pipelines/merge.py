"""Merge shards into results files of lm-eval: its own evaluation, with a model that repeats the stored responses.

Metrics, standard errors, groups and the files themselves are thus what a single `lm_eval` run would have written.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers import EvaluationTracker

from mesa_lm.pipelines.entry_tasks import entry_task_manager
from mesa_lm.pipelines.replay import Replay
from mesa_lm.pipelines.secrets import without_secrets
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store

# What `lm_eval` passes where the user says nothing.
STOCK = EvaluatorConfig()


def merge_shards(sweep: Sweep, shards: Sequence[Shard], store: Store) -> Path | None:
    """Merge what is complete of one entry of a sweep.

    Args:
        sweep: The sweep.
        shards: All shards of one model, method and task.
        store: Its folder.

    Returns:
        The results file; None where no leaf is complete. Leaves without all of their shards are left out.

    Raises:
        OSError: The results cannot be written; those of an earlier merge stay as they are.
    """
    entry = f"{shards[0].model}-{shards[0].method}-{shards[0].task}"
    part = store.results / f".{entry}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        written = _merge_into(part, sweep, shards, store)
        if written is None:
            return None
        final = store.results / entry
        shutil.rmtree(final, ignore_errors=True)  # what an earlier merge knew
        part.replace(final)
        return final / written.relative_to(part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _merge_into(part: Path, sweep: Sweep, shards: Sequence[Shard], store: Store) -> Path | None:
    """Write the results files of `merge_shards` into a folder and return the one of the scores."""
    stored = {shard.key: store.read_shard(shard.key) for shard in shards}
    leaves = list(dict.fromkeys(shard.leaf for shard in sorted(shards, key=lambda shard: shard.length or 0)))
    missing = {shard.leaf for shard in shards if stored[shard.key] is None}
    complete = [leaf for leaf in leaves if leaf not in missing]
    if not complete:
        return None
    payloads = [payload for shard in shards if shard.leaf in complete and (payload := stored[shard.key])]
    model, method, task = shards[0].entry
    seconds = sum(payload["seconds"] for payload in payloads)
    arguments = {**sweep.models[model].arguments, **sweep.methods[method].arguments}
    tracker = _tracker(part, arguments, seconds)
    if sweep.models[model].pretrained is None:  # lm-eval would draw a name
        tracker.general_config_tracker.model_name = sweep.models[model].name
        tracker.general_config_tracker.model_name_sanitized = sweep.models[model].name
    results = _evaluated(sweep, model, task, arguments, complete if missing else None, payloads)
    results["config"] = without_secrets({**results["config"], "model": "mesa-hf"})
    for described in results["configs"].values():
        described["metadata"] = without_secrets(
            {**(described.get("metadata") or {}), **sweep.methods[method].arguments}
        )
    results["sweep"] = {
        "name": sweep.name,
        "shards": len(payloads),
        "seconds": seconds,
        "costs": {leaf: _costs([payload for payload in payloads if payload["leaf"] == leaf]) for leaf in complete},
        "missing": sorted(missing),
        "out_of_memory": sorted({s.leaf for s in shards if (store.read_failure(s.key) or {}).get("status") == "oom"}),
    }
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return _written(part, tracker.date_id, {name: len(samples[name]) for name in results["configs"]})


def _tracker(part: Path, arguments: dict[str, Any], seconds: float) -> EvaluationTracker:
    """Return what writes lm-eval's results files, as its command has it after so many seconds."""
    tracker = EvaluationTracker(output_path=str(part))
    tracker.general_config_tracker.start_time = time.perf_counter() - seconds
    tracker.general_config_tracker.log_experiment_args(
        model_source="mesa-hf",
        model_args=arguments,
        system_instruction=None,
        chat_template=None,
        fewshot_as_multiturn=STOCK.fewshot_as_multiturn,
    )
    return tracker


def _evaluated(
    sweep: Sweep,
    model: int,
    task: int,
    arguments: dict[str, Any],
    leaves: list[str] | None,
    payloads: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return lm-eval's results of stored answers, of some leaves of an entry or of the whole entry."""
    entry = sweep.tasks[task]
    responses: dict[str, dict[str, Any]] = {}
    for payload in payloads:
        responses.setdefault(payload["leaf"], {}).update(payload["responses"])
    truncated = sum(payload["model_info"]["mesa_lm"]["truncated_samples"] for payload in payloads)
    results: dict[str, Any] | None = simple_evaluate(
        model=Replay(responses, payloads[0], truncated),
        model_args=arguments,
        tasks=leaves or [entry.task],
        num_fewshot=entry.num_fewshot,
        batch_size=sweep.batch_size,
        device=STOCK.device,
        gen_kwargs=STOCK.gen_kwargs,
        limit=entry.limit,
        log_samples=True,
        random_seed=sweep.seed,
        task_manager=entry_task_manager(sweep, sweep.models[model], entry),
    )
    assert results is not None
    return results


def _costs(payloads: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what one leaf's shards cost: peak memory in bytes, where it is known, and seconds per sample."""
    samples = sum(len(payload["responses"]) for payload in payloads)
    peaks = [payload["peak_bytes"] for payload in payloads if payload["peak_bytes"] is not None]
    time_s = sum(payload["evaluation_s"] for payload in payloads) / samples
    return {"sample_s": time_s, **({"peak_bytes": max(peaks)} if peaks else {})}


def _written(part: Path, date: str, counts: Mapping[str, int]) -> Path:
    """Return the file of the scores, after a look at all files: lm-eval says nothing of what it failed to write.

    Raises:
        OSError: A file is missing or not whole.
    """
    scores = next(part.rglob(f"results_{date}.json"), None)
    if scores is None:
        raise OSError("the results could not be written")
    try:
        json.loads(scores.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError("the results could not be written as a whole") from error
    for name, count in counts.items():
        file = scores.with_name(f"samples_{name}_{date}.jsonl")
        if not file.exists() or file.read_bytes().count(b"\n") != count:
            raise OSError(f"the samples of {name} could not be written as a whole")
    return scores
