"""Merge shards into results files of lm-eval: its own evaluation, with a model that repeats the stored responses.

Metrics, standard errors, groups and the files themselves are thus what a single `lm_eval` run would have written.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.config.evaluate_config import EvaluatorConfig
from lm_eval.loggers import EvaluationTracker

from .config import Sweep
from .plan import Shard, task_manager
from .secrets import without_secrets
from .store import Store

# What `lm_eval` passes where the user says nothing.
STOCK = EvaluatorConfig()


class Replay(LM):
    """A model that gives every request the response that was stored for it."""

    def __init__(self, responses: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any], truncated: int) -> None:
        """Prepare.

        Args:
            responses: Responses by leaf and sample, as lm-eval logs them.
            about: What a shard stored about the model.
            truncated: Samples of all shards that did not reach the model whole.
        """
        super().__init__()
        self._responses, self._about, self._truncated = responses, about, truncated
        self._given: Counter[tuple[str, int, int]] = Counter()
        self.tokenizer = SimpleNamespace(**about["tokenizer"])
        self.eot_token_id, self.max_length = about["eot_token_id"], about["max_length"]
        self.batch_sizes = dict(enumerate(about["batch_sizes"]))

    def get_model_info(self) -> dict[str, Any]:
        """Return what the model itself said."""
        info: dict[str, Any] = self._about["model_info"]
        return {**info, "mesa_lm": {**info["mesa_lm"], "truncated_samples": self._truncated}}

    def _replay(self, requests: Sequence[Instance]) -> list[Any]:
        found = []
        for request in requests:
            place = (str(request.task_name), int(request.doc_id or 0), request.idx)
            repeat = self._given[place]
            self._given[place] += 1
            response = self._responses[place[0]][str(place[1])][place[2]][repeat]
            found.append(tuple(response) if isinstance(response, list) else response)
        return found

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """See `LM.loglikelihood`."""
        return self._replay(requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """See `LM.loglikelihood_rolling`."""
        return self._replay(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        """See `LM.generate_until`."""
        return self._replay(requests)


def merge(sweep: Sweep, shards: Sequence[Shard], store: Store) -> Path | None:
    """Merge what is complete of one entry of a sweep.

    Args:
        sweep: The sweep.
        shards: All shards of one model, method and task.
        store: Its folder.

    Returns:
        The results file; None where no leaf is complete. Leaves without all of their shards are left out.
    """
    stored = {shard.key: store.read_shard(shard.key) for shard in shards}
    leaves = list(dict.fromkeys(shard.leaf for shard in sorted(shards, key=lambda shard: shard.length or 0)))
    missing = {shard.leaf for shard in shards if stored[shard.key] is None}
    complete = [leaf for leaf in leaves if leaf not in missing]
    if not complete:
        return None
    payloads = [payload for shard in shards if shard.leaf in complete and (payload := stored[shard.key])]
    responses: dict[str, dict[str, Any]] = {leaf: {} for leaf in complete}
    for payload in payloads:
        responses[payload["leaf"]] |= payload["responses"]
    truncated = sum(payload["model_info"]["mesa_lm"]["truncated_samples"] for payload in payloads)
    model, choice = sweep.models[shards[0].model], sweep.methods[shards[0].method]
    task = sweep.tasks[shards[0].task]
    arguments = {**model.arguments, **choice.arguments}
    entry = f"{shards[0].model}-{shards[0].method}-{shards[0].task}"
    part, final = store.results / f".{entry}", store.results / entry
    shutil.rmtree(part, ignore_errors=True)
    tracker = EvaluationTracker(output_path=str(part))
    tracker.general_config_tracker.start_time = time.perf_counter() - sum(payload["seconds"] for payload in payloads)
    tracker.general_config_tracker.log_experiment_args(
        model_source="mesa-hf",
        model_args=arguments,
        system_instruction=None,
        chat_template=None,
        fewshot_as_multiturn=STOCK.fewshot_as_multiturn,
    )
    if model.pretrained is None:  # lm-eval would draw a name
        tracker.general_config_tracker.model_name = tracker.general_config_tracker.model_name_sanitized = model.name
    results = simple_evaluate(
        model=Replay(responses, payloads[0], truncated),
        model_args=arguments,
        tasks=[task.task] if complete == leaves else complete,
        num_fewshot=task.num_fewshot,
        batch_size=sweep.batch_size,
        device=STOCK.device,
        gen_kwargs=STOCK.gen_kwargs,
        limit=task.limit,
        log_samples=True,
        random_seed=sweep.seed,
        task_manager=task_manager(sweep, model, task, choice),
    )
    assert results is not None
    results["config"]["model"] = "mesa-hf"
    results["config"] = without_secrets(results["config"])
    for described in results["configs"].values():
        described["metadata"] = without_secrets(described.get("metadata"))
    results["sweep"] = {
        "name": sweep.name,
        "shards": len(payloads),
        "seconds": sum(payload["seconds"] for payload in payloads),
        "peak_bytes": max(payload["peak_bytes"] for payload in payloads),
        "missing": sorted(missing),
        "out_of_memory": sorted({s.leaf for s in shards if (store.read_failure(s.key) or {}).get("status") == "oom"}),
    }
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    shutil.rmtree(final, ignore_errors=True)  # what an earlier merge knew
    part.replace(final)
    (written,) = final.rglob(f"results_{tracker.date_id}.json")
    return written
