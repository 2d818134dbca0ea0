"""Log results to Weights & Biases: one run per model and method, one for the leaderboard, always from what is on disk.

A run's id follows from the sweep, the model and the method, and every time it is logged in full. So it replaces what an
interrupted sweep logged before, online and, because its older folder is removed, offline too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import wandb

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.secrets import without_secrets
from mesa_lm.pipelines.wandb_content import log_leaderboard, log_method
from mesa_lm.reporting.files import make_folder, write_atomically
from mesa_lm.reporting.ranking import Entry, rank
from mesa_lm.reporting.results import Results, read

logger = logging.getLogger(__name__)

STATE = "wandb.json"
INIT_TIMEOUT_S = 60
FINISH_TIMEOUT_S = 600  # for what remains to be sent of one run
OUTAGES = (wandb.errors.Error, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to log.

    Args:
        project: W&B project.
        group: Name of the sweep; runs of one sweep are one group.
        folder: Local folder of the runs and of the state that tells what was logged.
        entity: W&B team or user; None: the default of the account.
        tags: Tags of every run, beside model, method and git commit.
        mode: "online" or "offline"; None: WANDB_MODE, else online where an API key is known.
    """

    project: str
    group: str
    folder: Path
    entity: str | None = None
    tags: tuple[str, ...] = ()
    mode: str | None = None

    def check(self) -> None:
        """Check names and folder before anything is read or logged.

        Raises:
            UsageError: W&B does not allow one of the names, the mode is unknown, or the folder cannot be written to.
        """
        _ = self.resolved_mode
        for name, value in (("project", self.project), ("group", self.group), ("entity", self.entity)):
            if value is not None and not value.strip():
                raise UsageError(f"W&B {name} must not be empty")
            try:
                wandb.Settings(**{"run_group" if name == "group" else name: value})
            except (wandb.errors.Error, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise UsageError(f"W&B {name} {value!r} cannot be used: {reason}") from None
        make_folder(self.folder)
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise UsageError(f"{self.folder}: cannot be written to; give another --folder")

    @property
    def resolved_mode(self) -> str:
        """The mode to log in: never online without an API key, for which W&B would ask."""
        mode = self.mode or os.environ.get("WANDB_MODE")
        if mode not in (None, "online", "offline", "disabled"):
            raise UsageError(f"W&B mode must be online, offline or disabled, found {mode!r}")
        if mode in ("offline", "disabled"):
            return mode
        if _has_api_key():
            return "online"
        if mode == "online":
            logger.warning("W&B: no API key is known (WANDB_API_KEY, wandb login); logging offline")
        return "offline"


class Logged(NamedTuple):
    """Say what became of the runs that some results are logged as.

    Attributes:
        done: The names of those that were logged.
        unchanged: Of those that had been logged before.
        failed: Of those that could not be logged.
        problems: For each damaged file of results or samples what is wrong with it.
    """

    done: list[str]
    unchanged: list[str]
    failed: list[str]
    problems: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlannedRun:
    """One run to log: its name, the parts that identify it, its tags, what its numbers depend on, and what logs it."""

    name: str
    job_type: str
    parts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    content: Sequence[Any]
    log: Callable[[Any], dict[str, Any]]

    def id_in(self, target: Target) -> str:
        """Return its id, the same whenever it is logged."""
        return id_of_run(target, self.job_type, *self.parts)


def log_results(paths: Iterable[Path], target: Target) -> Logged:
    """Log every model and method of some results, and the leaderboard.

    What was logged before and has not changed is not logged again. A failure of W&B is logged as a warning and never
    raised: the results are on disk and can be logged later by the same call.

    Args:
        paths: Results files, or folders that hold some.
        target: Where to log.

    Returns:
        What was logged and what was not.

    Raises:
        UsageError: The results cannot be read, or the mode is unknown.
    """
    mode = target.resolved_mode
    logged = Logged([], [], [], [])
    if mode == "disabled":
        logger.warning("W&B is disabled (WANDB_MODE): nothing is logged")
        return logged
    results = read(paths)
    entries = rank(results)
    logged.problems.extend([*results.problems, *(problem for entry in entries for problem in entry.problems)])
    for run in _planned_runs(results, entries):
        state, mode = _log_once(target, mode, run)
        getattr(logged, state).append(run.name)
        if state == "done" and run.job_type == "leaderboard" and mode == "online":
            update_report(target)
    return logged


def _planned_runs(results: Results, entries: Sequence[Entry]) -> Iterator[_PlannedRun]:
    """Yield the runs that some results are logged as: one per model and method, and the leaderboard."""
    for model, method in results.table[["model", "method"]].drop_duplicates().itertuples(index=False, name=None):
        own = results.where(model=model, method=method)
        board = [entry for entry in entries if (entry.model, entry.method) == (model, method)]
        commits = {file.commit for file in own.files.values()}
        yield _PlannedRun(
            name=f"{Path(model).name} {method}",
            job_type="eval",
            parts=(model, method),
            tags=(model, method, *(str(commit) for commit in commits if commit)),
            # Its rank depends on the other methods too.
            content=[*(file.content for _, file in sorted(own.files.items())), *(entry.row() for entry in board)],
            log=partial(log_method, results=own, entries=board),
        )
    if entries:
        rows, log = [entry.row() for entry in entries], partial(log_leaderboard, entries=entries)
        yield _PlannedRun(name="leaderboard", job_type="leaderboard", content=rows, log=log)


def _log_once(target: Target, mode: str, run: _PlannedRun) -> tuple[Literal["done", "unchanged", "failed"], str]:
    """Log one run in full unless the same was logged before.

    Returns:
        What became of it, and the mode for the next: offline once W&B could not be reached, as one wait is enough.
    """
    run_id = run.id_in(target)
    digest = _digest(mode, *run.content)
    if (_read_state(target.folder).get(run_id) or {}).get("digest") == digest:
        return "unchanged", mode
    earlier = _folders(target, run_id)
    try:
        _write_run(target, mode, run)
    except Exception as error:  # whatever W&B raises: an evaluation must not fail with it
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError):  # what was sent is not known, and its folder is still in use
            logger.warning("W&B: %s was not sent in time (%s); logging the others offline", run.name, told)
            return "failed", "offline"
        for folder in _folders(target, run_id) - earlier:
            shutil.rmtree(folder, ignore_errors=True)  # half of a run must never be synced
        if mode == "online" and isinstance(error, OUTAGES):
            logger.warning("W&B cannot be reached, logging offline (%s); send it later by wandb sync", told)
            wandb.teardown()  # its service holds on to the id of the run that failed
            return _log_once(target, "offline", run)
        logger.warning("W&B: %s was not logged (%s); results are on disk", run.name, told)
        return "failed", mode
    for folder in earlier:
        # Syncing two folders of one run would leave in W&B whichever came last.
        shutil.rmtree(folder, ignore_errors=True)
    _write_state(target.folder, _read_state(target.folder) | {run_id: {"name": run.name, "digest": digest}})
    return "done", mode


def _folders(target: Target, run_id: str) -> set[Path]:
    """Return all folders of one run, those of interrupted calls included; W&B numbers those of one second."""
    return set((target.folder / "wandb").glob(f"*run-*-{run_id}*"))


def _write_run(target: Target, mode: str, planned: _PlannedRun) -> None:
    """Log one run."""
    run = open_run(target, mode, planned.job_type, planned.parts, planned.name, planned.tags)
    try:
        run.config.update(without_secrets(planned.log(run)))
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def open_run(
    target: Target, mode: str, job_type: str, parts: Sequence[str], name: str, tags: Sequence[str] = ()
) -> Any:
    """Begin a run of W&B.

    Args:
        target: Where to log.
        mode: "online" or "offline".
        job_type: What kind of run it is.
        parts: What tells it from the others of its kind; the id follows from them.
        name: For people.
        tags: Beside those of the target.
    """
    target.folder.mkdir(parents=True, exist_ok=True)
    # Artifacts wait here until they are synced, which may be on another machine: beside the runs, not in a home.
    os.environ.setdefault("WANDB_DATA_DIR", str(target.folder.resolve()))
    return wandb.init(
        project=target.project,
        entity=target.entity,
        group=target.group,
        job_type=job_type,
        id=id_of_run(target, job_type, *parts),
        name=name,
        tags=sorted({tag[-64:] for tag in (*target.tags, *tags)}),  # W&B's limit
        dir=target.folder,
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
            x_disable_stats=True,
            save_code=False,
        ),
    )


def id_of_run(target: Target, job_type: str, *parts: str) -> str:
    """Return the id of a run, the same whenever it is logged."""
    return _digest(target.project, target.group, job_type, *parts)[:16]


def update_report(target: Target) -> None:
    """Create the report that shows the leaderboard, or bring it up to date, where wandb-workspaces is installed."""
    try:
        from wandb_workspaces.reports import v2 as reports
    except ImportError:
        logger.info('W&B: no report; pip install "mesa-lm[reports]" for one')
        return
    place = {"project": target.project} | ({"entity": target.entity} if target.entity else {})
    try:
        state = _read_state(target.folder)
        url = state.get("report")
        report = reports.Report.from_url(url) if url else reports.Report(**place, title=f"Leaderboard: {target.group}")
        runs = reports.Runset(**place, filters=f"Group == '{target.group}'")
        report.blocks = [
            reports.PanelGrid(runsets=[runs], panels=[reports.WeavePanelSummaryTable(table_name="leaderboard")])
        ]
        report.save()
        _write_state(target.folder, {**state, "report": report.url})
    except Exception as error:
        logger.warning("W&B: the report was not created (%s: %s)", type(error).__name__, error)


def _has_api_key() -> bool:
    """Tell whether W&B knows an API key, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    with suppress(Exception):
        return bool(wandb.login(prompt=False, verify=False))
    return False


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    write_atomically(folder / STATE, json.dumps(state, indent=2))
