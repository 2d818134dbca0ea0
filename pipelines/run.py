"""Run a sweep: plan it, evaluate on Ray what is missing, merge what is complete; everything is kept on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from typing import Any

import ray

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.driver import Driver
from mesa_lm.pipelines.lm_eval_output import printed_to
from mesa_lm.pipelines.merge import merge_shards
from mesa_lm.pipelines.outcome import Outcome
from mesa_lm.pipelines.secrets import without_secrets
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard, plan_shards
from mesa_lm.pipelines.store import Store
from mesa_lm.pipelines.worker import Worker


def run_sweep(sweep: Sweep, address: str | None = None, factory: Callable[..., Any] = Worker) -> Outcome:
    """Run what is missing of a sweep, and merge what is complete.

    Args:
        sweep: The sweep.
        address: Of a Ray cluster, "auto" for the one of this node; None starts one on this machine.
        factory: Makes a worker, see `Driver`; its `run` evaluates a shard.

    Raises:
        MesaError: The sweep is wrong, or its folder is in use.
    """
    # Workers of a cluster start in folders of their own.
    sweep = sweep.model_copy(update={"out": sweep.out.expanduser().absolute()})
    store = Store(sweep.out)
    with store.locked():
        with printed_to(store.log_path("plan")):
            shards = plan_shards(sweep)
        planned = {"sweep": without_secrets(sweep.model_dump(mode="json")), "shards": [asdict(s) for s in shards]}
        store.write("plan", planned)
        outcome = Outcome()
        missing = [shard for shard in shards if store.read_shard(shard.key) is None]
        outcome.done = outcome.reused = len(shards) - len(missing)
        if missing:
            with cluster(address):
                Driver(sweep, store, outcome, factory).work(missing, total=len(shards))
            _check_stored(missing, store, outcome)
        with printed_to(store.log_path("merge")):
            for _, group in groupby(sorted(shards, key=lambda shard: shard.entry), key=lambda shard: shard.entry):
                _merge(sweep, list(group), store, outcome)
        try:
            store.write("summary", outcome.summary(len(shards)))
        except UsageError as error:
            outcome.unwritten["summary"] = str(error)
        return outcome


def _check_stored(shards: Sequence[Shard], store: Store, outcome: Outcome) -> None:
    """Count shards as failed whose answers a worker has stored where nobody here finds them."""
    for shard in shards:
        known = shard in outcome.failed or shard in outcome.out_of_memory
        if not known and store.read_shard(shard.key) is None:
            outcome.done -= 1
            outcome.failed[shard] = f"its answers are not in {store.folder}, which every node must share"


def _merge(sweep: Sweep, shards: Sequence[Shard], store: Store, outcome: Outcome) -> None:
    """Merge one model, method and task; a full disk does not keep the others from it."""
    try:
        written = merge_shards(sweep, shards, store)
    except OSError as error:
        model, method, task = shards[0].entry
        names = (sweep.models[model].name, sweep.methods[method].label, sweep.tasks[task].task)
        outcome.unwritten[", ".join(names)] = str(error)
        return
    if written is not None:
        outcome.results.append(written)


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one here that ends with the sweep; a connection that is there is used.

    Raises:
        UsageError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}  # nothing listens to the outside
    try:
        ray.init(address, **options)
    except ConnectionError as error:
        raise UsageError(f"no Ray cluster at {address!r}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()
