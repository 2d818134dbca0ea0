"""The workers of a sweep on Ray: actors that hold a model each, placed where a node has room, ended when they hang."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.actor_gang import ActorGang
from mesa_lm.pipelines.outcome import Pulse
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard

logger = logging.getLogger(__name__)

WAIT_S = 1.0
PULSE_EVERY_S = 5.0
ROOM_EVERY_S = 2.0
STARTING_S = 300.0  # of a worker that has its resources
# A sample that runs more slowly than this is taken to hang, where that is longer than `workers.stall_s`.
LEAST_TOKENS_PER_S = 20
# Workers that end before they are ready, one after the other, before the sweep ends too.
MOST_FAILED_STARTS = 3


@dataclass(eq=False)
class Slot:
    """A worker: an actor for one model, or a gang of them.

    Attributes:
        gang: The actors.
        model: Index of its model in the sweep.
        asked: When its last pulse was asked for; the first one is its placement.
        pulse_reference: The pulse that it has not answered yet.
        pulse: Its last one; None as long as it is not placed.
        shard: The shard that it runs.
        references: Of that run's reports, as far as they are awaited.
        decided: The one that tells how the run ended.
        began: When it began that shard.
        moved: When the shard last moved on, as far as is known.
        tokens: That it has finished.
        busy_s: What they took.
    """

    gang: ActorGang
    model: int
    asked: float
    pulse_reference: Any
    pulse: Pulse | None = None
    shard: Shard | None = None
    references: list[Any] = field(default_factory=list)
    decided: Any = None
    began: float = 0.0
    moved: float = 0.0
    tokens: int = 0
    busy_s: float = 0.0

    def run(self, shard: Shard) -> None:
        """Begin a shard."""
        self.shard, self.began, self.moved = shard, time.monotonic(), time.monotonic()
        self.references, self.decided = self.gang.run(shard), None

    def take(self, reference: Any) -> None:
        """Take in that a report is there: the first bad one decides, or the last one."""
        self.references.remove(reference)
        if not self.references or (self.decided is None and not _is_done(reference)):
            self.decided = self.decided or reference

    def finish(self) -> tuple[Shard, Any]:
        """Return the shard that has ended, with the reference of the report that decides, and be idle."""
        shard, reference, self.shard, self.references = self.shard, self.decided, None, []
        assert shard is not None
        self.tokens += shard.cost
        self.busy_s += time.monotonic() - self.began
        return shard, reference


@dataclass
class WorkerPool:
    """Starts workers as the cluster has room for them, and ends those that are of no more use.

    Attributes:
        sweep: The sweep.
        factory: Makes a worker from the sweep, the index of a model in it and the driver's working folder.
        wait_s: How long to wait for resources while no worker has any.
        slots: The workers.
        failed_starts: Workers that ended before they were ready, since the last one that did not.
        unstaffed_since: Since when no worker has had resources; None while one has.
        room: How many workers the cluster has room for, by the last look.
        looked: When that was.
    """

    sweep: Sweep
    factory: Callable[..., Any]
    wait_s: float
    slots: list[Slot] = field(default_factory=list)
    failed_starts: int = 0
    unstaffed_since: float | None = None
    room: int = 0
    looked: float = float("-inf")

    @property
    def placed(self) -> list[Slot]:
        """Workers that have their resources and are ready."""
        return [slot for slot in self.slots if slot.pulse is not None]

    @property
    def idle(self) -> list[Slot]:
        """Workers that could begin a shard."""
        return [slot for slot in self.placed if slot.shard is None]

    @property
    def running(self) -> list[Slot]:
        """Workers that have a shard."""
        return [slot for slot in self.slots if slot.shard is not None]

    def adjust(self, waiting: Mapping[int, int], cost: Mapping[int, int]) -> None:
        """Start workers for shards that nobody runs, as far as there is room, and end those without any.

        A worker that is not placed keeps its request, by which a cluster that scales itself knows what is needed.

        Args:
            waiting: Number of shards that wait, by model.
            cost: Their tokens, by model.

        Raises:
            UsageError: No worker could be placed for `wait_s`, or none comes up.
        """
        for slot in [slot for slot in self.slots if slot.shard is None and not waiting.get(slot.model)]:
            self.drop(slot)
        count, room = self.sweep.workers.count, self._cluster_room()
        most = max(1, room) if count == "auto" else count
        for slot in [slot for slot in self.slots if slot.pulse is None][::-1]:  # for a node that is gone
            if len(self.slots) > most:
                self.drop(slot)
        while len(self.slots) < most:
            free = Counter(slot.model for slot in self.slots if slot.shard is None)
            own = Counter(slot.model for slot in self.slots)
            short = [model for model, shards in waiting.items() if shards > free[model]]
            if not short:
                break
            self._start(max(short, key=lambda model: (cost[model] / (1 + own[model]), -model)))
        self._check_waiting(room)

    def _cluster_room(self) -> int:
        """Return `cluster_room`, looked up now and then."""
        if time.monotonic() - self.looked > ROOM_EVERY_S:
            self.room, self.looked = cluster_room(self.sweep), time.monotonic()
        return self.room

    def _check_waiting(self, room: int) -> None:
        """Raise when no worker has had resources for too long."""
        if self.placed or not self.slots:
            self.unstaffed_since = None
            return
        if self.unstaffed_since is None:
            self.unstaffed_since = time.monotonic()
        waited = time.monotonic() - self.unstaffed_since
        if waited > self.wait_s and (not room or self.wait_s):
            raise UsageError(
                f"no worker could be placed{f' in {waited:.0f} s' if self.wait_s else ''}: {self.lacking()}"
            )

    @property
    def is_waiting(self) -> bool:
        """Whether no worker has resources, for longer than one takes to start."""
        since = self.unstaffed_since
        return since is not None and (not self.room or time.monotonic() - since > STARTING_S)

    def lacking(self) -> str:
        """Return what a worker needs and what there is, in words."""
        workers = self.sweep.workers
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        found = "; ".join(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes[:8])
        more = f" and {len(nodes) - 8} nodes more" if len(nodes) > 8 else ""
        needed = f"{workers.gpus:g} GPUs and {workers.cpus:g} CPUs on one node"
        needed += f", {workers.cp_size} times" if workers.cp_size > 1 else ""
        return f"one needs {needed}, the nodes have {found}{more}"

    def _start(self, model: int) -> None:
        gang = ActorGang(self.sweep, self.factory, model)
        self.slots.append(Slot(gang, model, asked=time.monotonic(), pulse_reference=gang.pulse()))

    def drop(self, slot: Slot) -> None:
        """End a worker, also one whose process is stopped."""
        self.slots.remove(slot)
        slot.gang.kill()

    def drop_hanging(self, slot: Slot) -> None:
        """End a worker that may be past answering Ray: its node ends the process."""
        pulses = [slot.pulse, *slot.gang.others()]
        self.drop(slot)
        for pulse in pulses:
            if pulse is not None:
                node = NodeAffinitySchedulingStrategy(pulse.node, soft=False)
                ray.remote(num_cpus=0, max_retries=0)(_end_process).options(scheduling_strategy=node).remote(pulse.pid)

    def close(self) -> None:
        """Leave no worker behind."""
        for slot in list(self.slots):
            self.drop(slot)

    def wait(self) -> list[Slot]:
        """Wait a moment for something to happen, and return the workers whose shard has ended."""
        now = time.monotonic()
        for slot in self.running:
            if slot.pulse_reference is None and now - slot.asked > PULSE_EVERY_S:
                slot.asked, slot.pulse_reference = now, slot.gang.pulse()
        asked = {slot.pulse_reference: slot for slot in self.slots if slot.pulse_reference is not None}
        run = {reference: slot for slot in self.running for reference in slot.references}
        references = [*run, *asked]
        if not references:
            return []
        ready, _ = ray.wait(references, timeout=WAIT_S)
        if ready:  # whatever else is there
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            if reference in asked:
                self._take_pulse(asked[reference], reference)
            else:
                run[reference].take(reference)
        return [slot for slot in self.running if slot.decided is not None]

    def _take_pulse(self, slot: Slot, reference: Any) -> None:
        slot.pulse_reference = None
        try:
            slot.pulse = ray.get(reference)
        except ray.exceptions.RayError as error:
            if slot.pulse is not None:
                return  # its shard's report says so as well
            self.drop(slot)
            self.failed_starts += 1
            logger.warning("a worker ended before it was ready: %s", type(error).__name__)
            if self.failed_starts >= MOST_FAILED_STARTS:
                reason = str(error).strip().splitlines()[-1]
                raise UsageError(f"{self.failed_starts} workers ended before they were ready: {reason}") from error
            return
        self.failed_starts = 0
        # A pulse asked for before the shard began says nothing of it.
        if slot.shard is not None and slot.asked >= slot.began:
            slot.moved = max(slot.moved, time.monotonic() - slot.pulse.still_s)

    def stalled(self) -> list[Slot]:
        """Return the workers whose shard has not moved on for longer than it may."""
        now = time.monotonic()
        return [slot for slot in self.running if slot.shard and now - slot.moved > self.patience_s(slot.shard)]

    def patience_s(self, shard: Shard) -> float:
        """Return how long a shard may show no progress: as set, or what its samples may need if that is longer."""
        sample = shard.cost / (shard.stop - shard.start)
        return max(self.sweep.workers.stall_s, self.sweep.batch_size * sample / LEAST_TOKENS_PER_S)


def cluster_room(sweep: Sweep) -> int:
    """Return how many workers have room on the nodes of the cluster that is connected; a gang may span nodes."""
    workers = sweep.workers
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            there = node["Resources"]
            fits = int(there.get("CPU", 0) / workers.cpus + 1e-9)
            if workers.gpus:
                gpus = there.get("GPU", 0)
                # A fraction of a GPU is never put together from two.
                each = int(1 / workers.gpus + 1e-9) if workers.gpus < 1 else 0
                fits = min(fits, int(gpus) * each if each else int(gpus / workers.gpus))
            room += fits
    return room // workers.cp_size


def _is_done(reference: Any) -> bool:
    """Tell whether a report that is there is one of success."""
    try:
        return bool(ray.get(reference).status == "done")
    except ray.exceptions.RayError:
        return False


def _end_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
