"""Workers of a sweep that answer without a model, and break in every way when told to."""

import os
import signal
import sys
import time
from collections import Counter
from contextlib import suppress

import ray

from mesa_lm.pipelines.entry_tasks import load_leaves
from mesa_lm.pipelines.outcome import Pulse, ShardReport
from mesa_lm.pipelines.store import Store

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test


def start_ray(**options):
    """Start Ray; it gives up a node that is not there in 30 seconds, which a busy machine may need."""
    options |= {"include_dashboard": False, "log_to_driver": False, "logging_level": 40}
    for _ in range(4):
        with suppress(Exception):
            return ray.init(**options)
        ray.shutdown()
    return ray.init(**options)


class FakeWorker:
    """Answers without a model; what happens to a shard is told by a file named after its leaf and first sample."""

    def __init__(self, sweep, model, cwd):
        self.sweep = sweep
        self.store = Store(sweep.out)
        self.moved = time.monotonic()

    def pulse(self):
        node = ray.get_runtime_context().get_node_id()
        return Pulse(node=node, pid=os.getpid(), still_s=time.monotonic() - self.moved)

    def run(self, shard):
        self.moved = time.monotonic()
        with (self.sweep.out / "ran").open("a") as file:
            file.write(f"{shard.key}\n")
        with (self.sweep.out / "who").open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()} {os.getpid()}\n")
        order = self.sweep.out / f"{shard.method}-{shard.leaf}-{shard.start}"
        what = order.read_text() if order.exists() else ""
        if what == "kill once":
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "slow":
            time.sleep(2)
        while what == "wait" and not (self.sweep.out / "go on").exists():
            self.moved = time.monotonic()
            time.sleep(0.05)
        if what == "hang once":
            order.unlink()
            time.sleep(600)
        if what == "stop once":
            order.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
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
        self.store.write_shard(shard.key, about | {"responses": self.answers(shard)})
        return ShardReport(status="done", seconds=0.1)

    def answers(self, shard):
        order = self.sweep.out / f"{shard.method}-{shard.leaf}-{shard.start}"
        if order.exists() and order.read_text() == "nonsense":
            return {str(i): [[7]] for i in range(shard.start, shard.stop)}  # which is no text to be scored
        return {str(i): [["1"]] for i in range(shard.start, shard.stop)}


class GangWorker(FakeWorker):
    """One of a gang; the first one waits for one that fails, as for a part of its prompt."""

    def __init__(self, sweep, model, cwd, place):
        super().__init__(sweep, model, cwd)
        self.place = place

    def address(self):
        return "of the first", os.getpid()

    def run(self, shard, address):
        order = self.sweep.out / f"{shard.method}-{shard.leaf}-{shard.start}"
        what = order.read_text() if order.exists() else ""
        with (self.sweep.out / "gang").open("a") as file:
            file.write(f"{shard.key} {self.place} {address[1]}\n")
        if what.startswith("second"):
            if self.place == 0:
                time.sleep(600)
            while f"{shard.key} 0" not in (self.sweep.out / "gang").read_text():
                time.sleep(0.05)
            order.unlink()
            if what == "second killed once":
                os.kill(os.getpid(), signal.SIGKILL)
            return ShardReport(status=what.split()[1], error="on purpose")
        return super().run(shard) if self.place == 0 else ShardReport(status="done")


class RightWorker(FakeWorker):
    """Knows every passkey."""

    def answers(self, shard):
        leaf = load_leaves(self.sweep, self.sweep.models[shard.model], self.sweep.tasks[shard.task])[shard.leaf]
        return {str(i): [[str(leaf.eval_docs[i]["key"])]] for i in range(shard.start, shard.stop)}


class ElsewhereWorker(FakeWorker):
    """Stores its answers on a disk of its own, as a node without the shared one does."""

    def __init__(self, sweep, model, cwd):
        super().__init__(sweep, model, cwd)
        self.store = Store(sweep.out.with_name("elsewhere"))


def order(sweep, method, leaf, start, what):
    (sweep.out / f"{method}-{leaf}-{start}").write_text(what)


def who(sweep):
    """Node and process of every shard that began, in their order."""
    return [tuple(line.split()) for line in (sweep.out / "who").read_text().splitlines()]


def ran(sweep):
    return Counter((sweep.out / "ran").read_text().split())
