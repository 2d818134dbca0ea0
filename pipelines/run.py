"""Run a sweep: plan it, evaluate on Ray what is missing, merge each length when it is there; all is kept on disk."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import ray

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.driver import Driver
from mesa_lm.pipelines.lm_eval_output import printed_to
from mesa_lm.pipelines.outcome import Outcome
from mesa_lm.pipelines.progress import Progress, Snapshot
from mesa_lm.pipelines.secrets import without_secrets
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard, plan_shards
from mesa_lm.pipelines.store import Store
from mesa_lm.pipelines.sweep_results import Listener, SweepResults
from mesa_lm.pipelines.worker import Worker
from mesa_lm.pipelines.worker_pool import WorkerPool

ADDRESS = re.compile(r"auto|(?:ray://)?(?:[\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5}")
SHOWN = 300  # characters of what Ray says
START_ATTEMPTS = 3


class LiveLog(Listener, Protocol):
    """Whoever logs a sweep while it runs."""

    def show(self, now: Snapshot) -> None:
        """Take in where the sweep is; called every second or so."""


class _Watcher:
    """Takes in what a driver says: results grow, and it is shown how far all is."""

    def __init__(self, results: SweepResults, progress: Progress, live: LiveLog | None) -> None:
        self.results, self.progress, self.live = results, progress, live

    def done(self, shard: Shard) -> bool:
        return self.results.done(shard)

    def show(self, pool: WorkerPool, left: int) -> None:
        now = self.progress.show(pool, left)
        if now is not None and self.live is not None:
            self.live.show(now)


def run_sweep(
    sweep: Sweep, address: str | None = None, factory: Callable[..., Any] = Worker, live: LiveLog | None = None
) -> Outcome:
    """Run what is missing of a sweep, and merge what is complete, length by length.

    Args:
        sweep: The sweep.
        address: Of a Ray cluster, "auto" for the one of this node; None starts one on this machine.
        factory: Makes a worker, see `Driver`; its `run` evaluates a shard.
        live: Told of every merged length and of how far the sweep is.

    Raises:
        MesaError: The sweep is wrong, its folder is in use, or no worker can be placed.
    """
    # Workers of a cluster start in folders of their own.
    sweep = sweep.model_copy(update={"out": sweep.out.absolute()})
    store = Store(sweep.out)
    with store.locked():
        with printed_to(store.log_path("plan")):
            shards = plan_shards(sweep)
        planned = {"sweep": without_secrets(sweep.model_dump(mode="json")), "shards": [asdict(s) for s in shards]}
        store.write("plan", planned)
        outcome = Outcome()
        results = SweepResults(sweep, shards, store, outcome, live)
        missing = results.start()
        try:
            if missing:
                _evaluate(sweep, store, outcome, missing, results, address, factory, live)
        finally:
            results.finish()
        try:
            store.write("summary", outcome.summary(len(shards)))
        except UsageError as error:
            outcome.unwritten["summary"] = str(error)
        return outcome


def _evaluate(
    sweep: Sweep,
    store: Store,
    outcome: Outcome,
    missing: Sequence[Shard],
    results: SweepResults,
    address: str | None,
    factory: Callable[..., Any],
    live: LiveLog | None,
) -> None:
    with cluster(address) as may_grow:
        # What has no room on a cluster of our own never will.
        driver = Driver(sweep, store, outcome, factory, wait_s=None if may_grow else 0.0)
        cost = sum(shard.cost for shard in missing)
        with Progress(sweep, store, outcome, results.total, cost) as progress:
            driver.work(missing, _Watcher(results, progress, live))


@contextmanager
def cluster(address: str | None) -> Iterator[bool]:
    """Connect to a cluster, or start one here that ends with the sweep; a connection that is there is used.

    Yields:
        Whether the cluster may grow.

    Raises:
        UsageError: There is no cluster at the address.
    """
    if ray.is_initialized():
        yield True
        return
    if address is not None and not ADDRESS.fullmatch(address):
        raise UsageError(f"--address must be auto, HOST:PORT or ray://HOST:PORT, found {address!r}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}  # nothing listens to the outside
    _connect(address, options)
    try:
        yield address is not None
    finally:
        ray.shutdown()


def _connect(address: str | None, options: dict[str, Any]) -> None:
    """Connect Ray, or start it; it gives up a node that is not there in 30 seconds, which a busy machine may need.

    Raises:
        UsageError: It cannot be.
    """
    where = "Ray cannot be started here" if address is None else f"no Ray cluster at {address!r}"
    for _ in range(START_ATTEMPTS if address is None else 1):
        try:
            ray.init(address or "local", **options)  # whatever RAY_ADDRESS says
            return
        except ImportError as error:
            raise UsageError(f'{address}: needs Ray\'s client: pip install "ray[client]" ({error})') from error
        except Exception as error:  # Ray raises all kinds, this one too
            ray.shutdown()
            failed = error
    raise UsageError(f"{where}: {' '.join(str(failed).split())[:SHOWN]}") from failed
