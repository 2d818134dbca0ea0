"""The results of a sweep, which grow while it runs: a length is merged as soon as all of its shards are stored."""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mesa_lm.pipelines.lm_eval_output import printed_to
from mesa_lm.pipelines.merge import EntryResults
from mesa_lm.pipelines.outcome import Outcome
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store

SHOWN = 300  # characters of an error that is not ours
ENTRY_FOLDER = re.compile(r"\d+-\d+-\d+")


class Listener(Protocol):
    """Whoever is told of results as they are merged."""

    def merged(self, results: Path, leaves: Sequence[str]) -> None:
        """Take in that a results file has more leaves now."""


class SweepResults:
    """Merges what is complete, and knows what is stored."""

    def __init__(
        self, sweep: Sweep, shards: Sequence[Shard], store: Store, outcome: Outcome, listener: Listener | None = None
    ) -> None:
        """Prepare.

        Args:
            sweep: The sweep.
            shards: All of its shards.
            store: Its folder.
            outcome: Where to note what is reused, merged and could not be written.
            listener: Told of every merged leaf.
        """
        self.sweep, self.shards, self.store, self.outcome, self.listener = sweep, shards, store, outcome, listener
        self.entries: dict[tuple[int, int, int], EntryResults] = {}
        self.not_stored: dict[tuple[int, int, int], dict[str, set[str]]] = {}
        # What was read to see whether it is whole, until it is merged: few, as the shards of a leaf run one by one.
        self._kept: dict[str, dict[str, Any]] = {}

    @property
    def total(self) -> int:
        """Number of shards."""
        return len(self.shards)

    def start(self) -> list[Shard]:
        """Merge what an earlier run left, remove results of other plans and sources, and return what is to be run."""
        entries: dict[tuple[int, int, int], list[Shard]] = {}
        for shard in self.shards:
            entries.setdefault(shard.entry, []).append(shard)
        for folder in self.store.results.glob("*"):
            if ENTRY_FOLDER.fullmatch(folder.name) and tuple(map(int, folder.name.split("-"))) not in entries:
                shutil.rmtree(folder, ignore_errors=True)  # of another plan
        lacking: set[str] = set()
        for entry, own in sorted(entries.items()):
            results = self.entries[entry] = EntryResults(self.sweep, own, self.store, self._answers)
            results.forget_others()
            self.not_stored[entry] = {leaf: self._read(results, leaf) for leaf in results.shards}
            lacking.update(*self.not_stored[entry].values())
            if new := [leaf for leaf in self._complete(entry) if leaf not in results.merged]:
                self._merge(entry, new)
        self.outcome.done = self.outcome.reused = len(self.shards) - len(lacking)
        return [shard for shard in self.shards if shard.key in lacking]

    def _read(self, results: EntryResults, leaf: str) -> set[str]:
        """Look at what is stored of a leaf, keep it for the merge, and return the keys of what is not."""
        lacking = set()
        for shard in results.shards[leaf]:
            payload = self.store.read_shard(shard.key)
            if payload is None:
                lacking.add(shard.key)
            elif leaf not in results.merged:
                self._kept[shard.key] = payload
        return lacking

    def _answers(self, key: str) -> dict[str, Any] | None:
        """Return what a shard answered, as `Store.read_shard` does; nothing is read twice."""
        return self._kept.pop(key, None) or self.store.read_shard(key)

    def done(self, shard: Shard) -> bool:
        """Take in that a shard has stored its answers, and merge its leaf if it was the last one.

        Returns:
            Whether they are where this driver finds them.
        """
        if not self.store.has_shard(shard.key):
            return False
        left = self.not_stored[shard.entry][shard.leaf]
        left.discard(shard.key)
        if not left:
            self._merge(shard.entry, [shard.leaf])
        return True

    def finish(self) -> None:
        """Bring the files up to date with what ran out of memory, and note what was written and what is damaged."""
        known = {*self.outcome.failed, *self.outcome.out_of_memory}
        for entry, results in self.entries.items():
            complete = self._complete(entry)
            if complete and (set(complete) - results.merged or results.is_behind(self._out_of_memory(entry))):
                self._merge(entry, complete)
            if results.path.is_file():
                self.outcome.results.append(results.path)
            unmerged = set(complete) - results.merged if self._name(entry) not in self.outcome.unwritten else set()
            for shard in (shard for leaf in unmerged for shard in results.shards[leaf]):
                if shard not in known and self.store.read_shard(shard.key) is None:
                    self.outcome.done -= 1
                    self.outcome.failed[shard] = "its stored answers are damaged; run the sweep again"

    def _complete(self, entry: tuple[int, int, int]) -> list[str]:
        return [leaf for leaf, left in self.not_stored[entry].items() if not left]

    def _out_of_memory(self, entry: tuple[int, int, int]) -> set[str]:
        """Return the leaves of an entry that ran out of memory, or were skipped because a shorter one did."""
        return {shard.leaf for shard in self.outcome.out_of_memory if shard.entry == entry}

    def _merge(self, entry: tuple[int, int, int], leaves: Sequence[str]) -> None:
        """Merge leaves of one model, method and task; neither a full disk nor how a task scores ends the sweep."""
        results, name = self.entries[entry], self._name(entry)
        before = results.merged
        try:
            with printed_to(self.store.log_path("merge")):
                try:
                    results.add(leaves, self._out_of_memory(entry))
                except Exception:
                    traceback.print_exc()
                    raise
        except OSError as error:
            self.outcome.unwritten[name] = str(error)
            return
        except Exception as error:  # whatever a task's own scoring raises
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"
            self.outcome.unwritten[name] = (
                f"the answers of {', '.join(leaves)} cannot be scored: {told} (logs/merge.log)"
            )
            return
        self.outcome.unwritten.pop(name, None)
        if self.listener is not None and (added := sorted(results.merged - before)):
            self.listener.merged(results.path, added)

    def _name(self, entry: tuple[int, int, int]) -> str:
        model, method, task = entry
        sweep = self.sweep
        return ", ".join((sweep.models[model].name, sweep.methods[method].label, sweep.tasks[task].task))
