"""Evaluate shards: one model, loaded once, under one method after another."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
import traceback
from pathlib import Path
from typing import Any

import ray
import torch
from lm_eval import simple_evaluate

from mesa_lm.errors import MesaError, UsageError
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.methods.registry import make_method
from mesa_lm.models.memory import release, reset_peak, status_bytes
from mesa_lm.pipelines.entry_tasks import entry_task_manager
from mesa_lm.pipelines.lm_eval_output import machine_asked_once, printed_to
from mesa_lm.pipelines.outcome import Pulse, ShardReport
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shard_keys import documents_digest, evaluation_digest
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")


class Worker:
    """Evaluates shards of one model of a sweep."""

    def __init__(self, sweep: Sweep, model: int, cwd: Path | None = None) -> None:
        """Prepare; the model is loaded with the first shard, so that its failure is that shard's.

        Args:
            sweep: The sweep.
            model: Index of the model in it.
            cwd: The driver's working folder, for the sweep's relative paths; where it is missing, they mean nothing.
        """
        if cwd is not None and cwd.is_dir():
            os.chdir(cwd)
        self.sweep, self.model = sweep, sweep.models[model]
        self.store = Store(sweep.out)
        self._sources = evaluation_digest()  # now: what is edited later is not what this process has imported
        self._lm: MesaHFLM | None = None
        self._method: int | None = None
        self._moved = time.monotonic()
        torch.set_num_threads(sweep.workers.threads)
        if not sweep.workers.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray does not hide the GPUs from a worker that asked for none
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(self, shard: Shard) -> ShardReport:
        """Evaluate a shard and store its answers.

        Nothing is raised: what went wrong is a result of the sweep.
        """
        start = time.perf_counter()
        self._moved = time.monotonic()
        log = self.store.log_path(shard.key)
        try:
            with printed_to(log):
                payload = self._answers(shard)
        except Exception as error:
            with contextlib.suppress(OSError):
                with log.open("a", encoding="utf-8") as file:
                    traceback.print_exc(file=file)
            self._lm = None  # whatever state it is in
            release(self.device)
            return ShardReport(
                status="oom" if _is_out_of_memory(error) else "failed",
                final=isinstance(error, MesaError),  # wrong input stays wrong
                error=f"{type(error).__name__}: {str(error).strip()[:500]}",
                seconds=time.perf_counter() - start,
            )
        seconds = payload["seconds"] = time.perf_counter() - start
        try:
            self.store.write_shard(shard.key, payload)
        except OSError as error:
            disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            told = f"its answers cannot be stored: {error}"
            return ShardReport(status="failed", error=told, seconds=seconds, disk_full=disk_full)
        return ShardReport(status="done", seconds=seconds)

    def pulse(self) -> Pulse:
        """Say, from another thread than `run`, where this is and whether the shard moves on."""
        moved = max(self._moved, self._lm.bar.moved if self._lm is not None else 0.0)
        return Pulse(
            node=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            still_s=time.monotonic() - moved,
            gpu_bytes=torch.cuda.memory_reserved() if self.device.type == "cuda" else None,
        )

    def _answers(self, shard: Shard) -> dict[str, Any]:
        """Return the responses of a shard's samples, and what lm-eval would save about the model."""
        lm = self._load(shard.method)
        task = self.sweep.tasks[shard.task]
        random.seed(self.sweep.seed)
        lm.truncated_samples = 0
        manager = entry_task_manager(self.sweep, self.model, task)
        leaf = manager.load([shard.leaf])["tasks"].get(shard.leaf)  # builds the documents, which is not to be measured
        if leaf is None:
            raise UsageError(f"this node knows no task {shard.leaf!r}; include_path must be on every node")
        if f"{self._sources} {manager.sources(shard.leaf)}" != shard.sources:
            raise UsageError(
                "the sources of mesa-lm or of the task are not those that the sweep was planned with: this node has "
                "others, or they were edited since; start the sweep again"
            )
        if documents_digest(leaf, shard.start, shard.stop) != shard.documents:
            raise UsageError(
                f"{shard.leaf} has other documents here than where the sweep was planned: it draws them at random "
                "without a seed, or reads data that have changed"
            )
        _reset_peak(self.device)
        self._moved = time.monotonic()  # model and documents are there
        start = time.perf_counter()
        with machine_asked_once():
            results = simple_evaluate(
                model=lm,
                tasks=[shard.leaf],
                samples={shard.leaf: list(range(shard.start, shard.stop))},
                **task.evaluation,
                batch_size=self.sweep.batch_size,
                bootstrap_iters=0,
                log_samples=True,
                random_seed=self.sweep.seed,
                task_manager=manager,
            )
        evaluation_s = time.perf_counter() - start
        assert results is not None
        responses = {sample["doc_id"]: sample["resps"] for sample in results["samples"][shard.leaf]}
        tokenizer = lm.tokenizer
        return {
            "leaf": shard.leaf,
            "responses": {str(place): given for place, given in sorted(responses.items())},
            "model_info": lm.get_model_info(),
            "batch_sizes": list(lm.batch_sizes.values()),
            "eot_token_id": lm.eot_token_id,
            "max_length": lm.max_length,
            "tokenizer": {
                name: getattr(tokenizer, name)
                for kind in ("pad", "eos", "bos")
                for name in (f"{kind}_token", f"{kind}_token_id")
            },
            "peak_bytes": _peak_bytes(self.device),
            "evaluation_s": evaluation_s,
        }

    def _load(self, method: int) -> MesaHFLM:
        """Return the model under a method; only the first call loads it."""
        choice = self.sweep.methods[method]
        if self._lm is None:
            arguments = {**self.model.arguments, **choice.arguments, "batch_size": self.sweep.batch_size}
            self._lm = MesaHFLM(**arguments)
        elif self._method != method:
            self._lm.switch(make_method(choice.method, **choice.parameters))
        self._method = method
        return self._lm


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in OUT_OF_MEMORY)
    )


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # only Linux has it
            reset_peak()


def _peak_bytes(device: torch.device) -> int | None:
    """Return the most memory in use since `_reset_peak`, of the GPU or of the process; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    try:
        return status_bytes("VmHWM")
    except OSError:
        return None
