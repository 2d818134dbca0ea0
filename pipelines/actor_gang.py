"""The actors of one worker of a sweep: one, or a gang whose processes share every prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mesa_lm.pipelines.outcome import Pulse
from mesa_lm.pipelines.settings import Sweep, WorkerSettings
from mesa_lm.pipelines.shards import Shard


class ActorGang:
    """Actors that run the same shards; each is given its place, and the first one tells the others where it is.

    Attributes:
        size: Their number.
    """

    def __init__(self, sweep: Sweep, factory: Callable[..., Any], model: int) -> None:
        """Ask for them; all get their resources together.

        Args:
            sweep: The sweep.
            factory: Makes a worker from the sweep, the index of a model in it, the driver's working folder and, in a
                gang, its place.
            model: The index.
        """
        workers, arguments = sweep.workers, (sweep, model, Path.cwd())
        self.size = workers.cp_size
        # A second thread answers for the one that evaluates.
        options: dict[str, Any] = {
            "max_restarts": 0,
            "max_concurrency": 2,
            "num_gpus": workers.gpus,
            "num_cpus": workers.cpus,
        }
        self._placement: PlacementGroup | None = None
        self._address: Any = None
        if self.size == 1:
            self._actors = [ray.remote(**options)(factory).remote(*arguments)]
            return
        self._placement = placement_group([_resources(workers)] * self.size, strategy="PACK")
        self._actors = []
        for place in range(self.size):
            strategy = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=place)
            actor = ray.remote(**options, scheduling_strategy=strategy)(factory)
            self._actors.append(actor.remote(*arguments, place))
        self._address = self._actors[0].address.remote()
        self._pulses = [actor.pulse.remote() for actor in self._actors[1:]]

    def run(self, shard: Shard) -> list[Any]:
        """Begin a shard and return references of the reports, the first actor's first."""
        if self.size == 1:
            return [self._actors[0].run.remote(shard)]
        return [actor.run.remote(shard, self._address) for actor in self._actors]

    def pulse(self) -> Any:
        """Return the reference of the first actor's pulse."""
        return self._actors[0].pulse.remote()

    def others(self) -> list[Pulse]:
        """Return where the other actors are, as far as they have said so."""
        if self.size == 1:
            return []
        there, _ = ray.wait(self._pulses, num_returns=len(self._pulses), timeout=0)
        found = []
        for reference in there:
            try:
                found.append(ray.get(reference))
            except ray.exceptions.RayError:
                continue  # it is gone
        return found

    def kill(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        if self._placement is not None:
            remove_placement_group(self._placement)


def _resources(workers: WorkerSettings) -> dict[str, float]:
    """Return what one actor needs."""
    return {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
