"""Workers of a sweep that answer without a model, and break in every way when told to."""

import os
import signal
import sys
import time
from collections import Counter

import ray

from mesa_lm.pipelines.outcome import ShardReport
from mesa_lm.pipelines.store import Store

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


class FakeWorker:
    """Answers without a model; what happens to a shard is told by a file named after its leaf and first sample."""

    def __init__(self, sweep, model, cwd):
        self.sweep = sweep
        self.store = Store(sweep.out)

    def run(self, shard):
        with (self.sweep.out / "ran").open("a") as file:
            file.write(f"{shard.key}\n")
        order = self.sweep.out / f"{shard.method}-{shard.leaf}-{shard.start}"
        what = order.read_text() if order.exists() else ""
        if what == "kill once":
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "slow":
            time.sleep(2)
        if what == "hang once":
            order.unlink()
            time.sleep(600)
        if what in ("failed", "oom"):
            return ShardReport(status=what, error=f"{what} on purpose", seconds=0.0)
        eaten = []
        while what == "eat":
            eaten.append(b"x" * 2**27)
            assert len(eaten) < 64, "nobody minds"
            time.sleep(0.05)
        about = {"leaf": shard.leaf, "batch_sizes": [], "eot_token_id": 1, "max_length": 99, "peak_bytes": 1}
        about["evaluation_s"] = 0.1
        about |= {"model_info": {"mesa_lm": {"truncated_samples": 0}}, "seconds": 0.1}
        about["tokenizer"] = dict.fromkeys(("pad_token", "eos_token", "bos_token"), "x")
        about["tokenizer"] |= dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id"), 0)
        self.store.write_shard(
            shard.key, about | {"responses": {str(i): [["1"]] for i in range(shard.start, shard.stop)}}
        )
        return ShardReport(status="done", seconds=0.1)


class NodeWorker(FakeWorker):
    """Hangs only until the node is removed, if it happens to run on the other one."""

    def run(self, shard):
        order_file = self.sweep.out / f"{shard.method}-{shard.leaf}-{shard.start}"
        if order_file.exists():
            order_file.unlink()
            while not (self.sweep.out / "removed").exists():
                time.sleep(0.05)
        return super().run(shard)


class ElsewhereWorker(FakeWorker):
    """Stores its answers on a disk of its own, as a node without the shared one does."""

    def __init__(self, sweep, model, cwd):
        super().__init__(sweep, model, cwd)
        self.store = Store(sweep.out.with_name("elsewhere"))


def order(sweep, method, leaf, start, what):
    (sweep.out / f"{method}-{leaf}-{start}").write_text(what)


def ran(sweep):
    return Counter((sweep.out / "ran").read_text().split())
