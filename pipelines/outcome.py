"""What becomes of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mesa_lm.pipelines.plan import Shard


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
