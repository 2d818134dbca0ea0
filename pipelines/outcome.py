"""What becomes of a shard, and of a sweep."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mesa_lm.pipelines.shards import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """How an attempt at a shard ended.

    Attributes:
        status: Whether its answers are stored, it ran out of memory, or something else went wrong.
        error: What went wrong; empty where nothing did.
        seconds: How long it took, where that is known.
        final: Another attempt cannot help.
        disk_full: There is no room for its answers.
    """

    status: Literal["done", "oom", "failed"]
    error: str = ""
    seconds: float | None = None
    final: bool = False
    disk_full: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What a worker says of itself while it runs a shard.

    Attributes:
        node: Ray's name of its node.
        pid: Of its process.
        still_s: Seconds since its shard last moved on.
        gpu_bytes: Memory that it has taken of its GPU; None without one.
    """

    node: str
    pid: int
    still_s: float
    gpu_bytes: int | None = None


@dataclass
class Outcome:
    """What became of a sweep.

    Attributes:
        done: Shards whose answers are on disk.
        reused: Of these, shards that an earlier run had finished.
        failed: Why the others have none, by shard.
        out_of_memory: Shards that ran out of memory, or were skipped because a shorter input did.
        results: Results files that were merged.
        unwritten: What could not be written of the results, and why.
    """

    done: int = 0
    reused: int = 0
    failed: dict[Shard, str] = field(default_factory=dict)
    out_of_memory: set[Shard] = field(default_factory=set)
    results: list[Path] = field(default_factory=list)
    unwritten: dict[str, str] = field(default_factory=dict)

    def summary(self, total: int) -> dict[str, Any]:
        """Return the content of `summary.json`.

        Args:
            total: Number of shards of the sweep.
        """
        return {
            "time": time.time(),
            "shards": total,
            "done": self.done,
            "reused": self.reused,
            "failed": [{"key": s.key, "leaf": s.leaf, "error": error} for s, error in self.failed.items()],
            "out_of_memory": sorted({s.leaf for s in self.out_of_memory}),
            "results": [str(path) for path in self.results],
            "unwritten": self.unwritten,
        }
