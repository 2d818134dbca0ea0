"""Nights: the folders that a sweep writes night by night, what changed from one to the next, and which are kept."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mesa_lm.harness.sources import package_commit
from mesa_lm.lengths import length_label
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.reporting.changes import Change, changes
from mesa_lm.reporting.files import save_file
from mesa_lm.reporting.leaderboard_files import save_leaderboard
from mesa_lm.reporting.ranking import rank
from mesa_lm.reporting.results import read

NIGHT = "night.json"
HISTORY = "history.html"


@dataclass(frozen=True)
class Night:
    """One night of a sweep.

    Attributes:
        folder: Its output folder; one that is no longer kept holds nothing but what the history shows.
    """

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What its sweep said at its end; empty before."""
        return _read(self.folder / "summary.json")

    @cached_property
    def measured(self) -> dict[str, Any]:
        """What the history shows of it; empty where it came to nothing."""
        return _read(self.folder / NIGHT)

    @property
    def is_complete(self) -> bool:
        """Whether nothing failed, and it can be compared with."""
        about = self.summary
        return bool(about.get("results")) and not about.get("failed") and not about.get("unwritten")

    @property
    def time(self) -> float:
        """When its sweep ended, in seconds since 1970; 0 where that is not known."""
        return float(self.summary.get("time") or self.measured.get("time") or 0.0)


def nights(root: Path, name: str) -> list[Night]:
    """Return the nights of a sweep, the earliest first.

    Args:
        root: The folder that holds their folders.
        name: Of the sweep; folders of others are left alone.
    """
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        own = _read(folder / NIGHT).get("name") or (_read(folder / "plan.json").get("sweep") or {}).get("name")
        if own == name:
            found.append(Night(folder))
    return sorted(found, key=lambda night: (night.time, night.folder.name))


def conclude_night(sweep: Sweep) -> list[Change]:
    """Write a night's leaderboard against the last complete night, and the history page; remove what is not kept.

    Args:
        sweep: The sweep, whose folder is the night's.

    Returns:
        What changed.

    Raises:
        UsageError: Nothing was measured, or a file cannot be written.
    """
    root, now = sweep.out.parent, Night(sweep.out)
    earlier = [night for night in nights(root, sweep.name) if night.folder != sweep.out]
    complete = [night for night in earlier if night.is_complete]
    results = read([sweep.out / "results"])
    ranked = rank(results)
    before = complete[-1] if complete else None
    found = changes(ranked, rank(read([before.folder / "results"])) if before else [])
    if ranked:
        save_leaderboard(found, sweep.out / "leaderboard.html", results.files)
    save_file(now.folder / NIGHT, json.dumps(_measured(sweep, found, before), indent=2))
    _remove(earlier, before, sweep.keep)
    save_file(root / HISTORY, render_history([*earlier, now]))
    return found


def _measured(sweep: Sweep, found: Sequence[Change], before: Night | None) -> dict[str, Any]:
    """Return what the history shows of a night."""
    return {
        "name": sweep.name,
        "time": time.time(),
        **package_commit()._asdict(),
        "against": before and before.folder.name,
        "entries": [
            {
                "model": change.entry.model,
                "task": change.entry.task,
                "method": change.entry.method,
                "metric": change.entry.metric,
                "effective_length": change.now.effective_length if change.now else None,
                "mean": change.now.mean if change.now else None,
                "nll": change.now.loss if change.now else None,
                "change": change.kind,
                "reasons": list(change.reasons),
            }
            for change in found
        ],
    }


def _remove(earlier: Sequence[Night], before: Night | None, keep: int | None) -> None:
    """Remove the oldest nights, but for what the history shows of them, and never the last complete one."""
    if keep is None:
        return
    for night in earlier[: max(0, len(earlier) + 1 - keep)]:
        for path in night.folder.iterdir() if night != before else ():
            if path.name != NIGHT:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def render_history(found: Sequence[Night]) -> str:
    """Return a page with every method's effective length, mean and NLL over the nights, the latest first."""
    rows: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    shown = [night for night in found if night.measured][::-1]
    for night in shown:
        for entry in night.measured["entries"]:
            board = (entry["model"], entry["task"], entry["metric"])
            rows.setdefault(board, {}).setdefault(entry["method"], {})[night.folder.name] = entry
    environment = Environment(
        loader=PackageLoader("mesa_lm.pipelines"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["tokens"] = length_label
    return environment.get_template("history.html").render(nights=shown, boards=sorted(rows.items()))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
