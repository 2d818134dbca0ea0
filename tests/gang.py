"""Processes that wait for work: one start serves many tests of prompts that processes share."""

import multiprocessing
import os
import traceback
from datetime import timedelta


class Gang:
    """Processes joined by torch.distributed over the loopback.

    They import modules at the top of tests/ only; what they are given and return is pickled.
    """

    def __init__(self, size: int, folder) -> None:
        context = multiprocessing.get_context("forkserver")  # which imports once for all of them
        context.set_forkserver_preload(["rank_cases"])
        pipes = [context.Pipe() for _ in range(size)]
        self.ends = [own for own, _ in pipes]
        store = f"file://{folder}/store-{os.getpid()}-{id(self)}"
        self.processes = [
            context.Process(target=_serve, args=(end, rank, size, store), daemon=True)
            for rank, (_, end) in enumerate(pipes)
        ]
        for process, (_, end) in zip(self.processes, pipes, strict=True):
            process.start()
            end.close()

    def begin(self, function, *args, size: int | None = None) -> list:
        """Call a function with the group of the first `size` processes; return the pipes that bring the answers."""
        ends = self.ends[: size or len(self.ends)]
        for end in self.ends:  # all of them make the group
            end.send((function, len(ends), args))
        return ends

    def run(self, function, *args, size: int | None = None) -> list:
        """Call a function with the group of the first `size` processes and return what each of them returned."""
        answers = [end.recv() for end in self.begin(function, *args, size=size)]
        for failed, answer in answers:
            assert not failed, answer
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(end, rank: int, size: int, store: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(minutes=5))
    groups = {}
    while True:
        function, wanted, args = end.recv()
        if wanted not in groups:
            groups[wanted] = dist.new_group(list(range(wanted)))
        if rank >= wanted:
            continue
        try:
            end.send((False, function(groups[wanted], *args)))
        except Exception:
            end.send((True, traceback.format_exc()))
