"""A cluster of Ray on this machine that nodes join and leave, and a small sweep to run on it."""

import time
from contextlib import suppress

from mesa_lm.demo import MODEL_PATH
from mesa_lm.pipelines.sweep_file import load_sweep

SWEEP = """
name: test
out: OUT
models: [{pretrained: MODEL}]
methods: [mesa, rerope]
tasks: [{task: passkey_long, metadata: {num_samples: 4}}]
lengths: [80, 130]
shard_tokens: 150
workers: {cpus: 1}
max_attempts: 2
"""


def small_sweep(folder):
    """Return a small sweep that writes to a folder."""
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.replace("OUT", str(folder / "out")).replace("MODEL", str(MODEL_PATH)))
    (folder / "out").mkdir()
    return load_sweep(path)


def until(true, timeout_s=600):
    """Wait for something to be true."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def joined(nodes, num_cpus):
    """Add a node; Ray gives one up that does not come up in 30 seconds, which a busy machine may need."""
    for _ in range(4):
        with suppress(Exception):
            return nodes.add_node(num_cpus=num_cpus, include_dashboard=False)
    return nodes.add_node(num_cpus=num_cpus, include_dashboard=False)


def with_workers(sweep, **settings):
    return sweep.model_copy(update={"workers": sweep.workers.model_copy(update=settings)})
