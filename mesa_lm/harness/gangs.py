"""lm-eval's `hf` in gangs: processes that share every prompt answer the same requests, and gangs share the requests."""

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from mesa_lm.errors import UsageError
from mesa_lm.harness.lm_eval_caches import copy_in_memory
from mesa_lm.harness.task_options import is_count
from mesa_lm.methods.base import Method
from mesa_lm.methods.registry import check_cuts_prompts

# How long a process waits for another one's part of a prompt. One that has ended is noticed at once.
PATIENCE = timedelta(minutes=30)


class GangHFLM(HFLM):  # type: ignore[misc]  # lm-eval publishes no types
    """lm-eval's `hf` where lm-eval's "ranks" are gangs.

    Attributes:
        gang: The processes that share this one's prompts; None: there are none.
        gang_size: Their number.
        writes: Whether this process, of all those that hold the same answers, is to write them.
    """

    gang: dist.ProcessGroup | None = None
    gang_size = 1
    writes = True

    def join_gang(self, size: int) -> None:
        """Form the gangs, each of neighbouring processes; all processes must call it.

        Args:
            size: Processes of a gang; 1 leaves everything to `hf`.
        """
        if size == 1:
            return
        if not dist.is_initialized():  # accelerate does it on GPUs only
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.gang, _ = dist.new_subgroups(group_size=size, timeout=PATIENCE)
        self.gang_size = size
        self._rank, self._world_size = dist.get_rank() // size, dist.get_world_size() // size
        self.writes = dist.get_rank() % size == 0
        # Of the processes that have the same place in each gang, one gets everybody's answers.
        peers = [dist.new_group(list(range(place, dist.get_world_size(), size))) for place in range(size)]
        self._peers = peers[dist.get_rank() % size]

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all gangs, one after the other."""
        if self.gang is None:
            gathered: Tensor = super().all_gather(tensor)
            return gathered
        own = torch.atleast_1d(tensor).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(parts, own, self._peers)
        return torch.cat(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Return what each gang has, on the gang `dst`; None on others."""
        if self.gang is None:
            gathered: list[Any] | None = super().gather_object(obj, dst)
            return gathered
        found = [None] * self.world_size if self.rank == dst else None
        dist.gather_object(obj, found, group=self._peers, group_dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for the other gangs."""
        if self.gang is None:
            super().barrier()
        else:
            dist.barrier(self._peers)

    def share_answers(self, answers: Any) -> None:
        """Let a gang find the same answers in lm-eval's cache, of which one process writes the file.

        Args:
            answers: The `SqliteDict` behind `--use_cache`.
        """
        if self.gang is None:
            return
        held = [dict(answers) if self.writes else None]
        dist.broadcast_object_list(held, group=self.gang, group_src=0)
        if not self.writes:
            copy_in_memory(answers, held[0] or {})


def check_gang(size: object, method: Method, arguments: Mapping[str, Any]) -> None:
    """Refuse gangs that cannot be, before a model is loaded.

    Args:
        size: Processes of a gang, as the user gave them.
        method: That is to run.
        arguments: Others of `hf`.

    Raises:
        UsageError: There are not as many processes, or the size or another argument does not suit.
        MethodError: The method's prompts cannot be shared.
    """
    if not is_count(size):
        raise UsageError(f"cp_size must be a whole number of processes, at least 1; found {size!r}")
    assert isinstance(size, int)
    if size == 1:
        return
    check_cuts_prompts(method, f"cp_size={size}")
    there = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if there % size:
        raise UsageError(
            f"cp_size={size} needs {size} processes, or a multiple of it, found {there}; begin with "
            f"torchrun --nproc-per-node {size} -m lm_eval --model mesa-hf ..."
        )
    if str(arguments.get("batch_size", 1)).startswith("auto"):
        raise UsageError(f"cp_size={size} needs a number as batch_size: all processes must run the same batches")
    for name in ("parallelize", "tp_plan"):
        if arguments.get(name):
            raise UsageError(f"cp_size={size} and {name} both divide a model's work among devices; give one of them")
