"""Log results to Weights & Biases: one run per model and method, one for the leaderboard, always from what is on disk.

A run's id follows from the sweep, the model and the method, and every time it is logged in full. So it replaces what an
interrupted sweep logged before, online and, because its older folder is removed, offline too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import wandb

from mesa_lm.errors import UsageError
from mesa_lm.leaderboard.ranking import Entry, rank
from mesa_lm.results import Cell, interval, read
from mesa_lm.samples import answers, has_samples, samples_path

logger = logging.getLogger(__name__)

SAMPLES = 100  # rows of a sample table per task and length
SAMPLE_LENGTH = 500  # characters of an answer in it
HIDDEN = "[hidden]"
SECRET = re.compile(r"token(?!iz)|secret|passw|api_?key|credential", re.IGNORECASE)
SECRET_ARGUMENT = re.compile(r"(\w*(?:token(?!iz)|secret|passw|api_?key|credential)\w*=)[^,\s]+", re.IGNORECASE)
STATE = "wandb.json"


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

    @property
    def resolved_mode(self) -> str:
        """The mode to log in."""
        mode = self.mode or os.environ.get("WANDB_MODE")
        if mode is None:
            mode = "online" if _has_api_key() else "offline"
        if mode not in ("online", "offline", "disabled"):
            raise UsageError(f"W&B mode must be online, offline or disabled, found {mode!r}")
        return mode


def track(results: Iterable[Path], target: Target) -> list[str]:
    """Log every model and method of some results, and the leaderboard.

    What was logged before and has not changed is not logged again. A failure of W&B is logged as a warning and never
    raised: the results are on disk and can be logged later by the same call.

    Args:
        results: Results files, or folders that hold some.
        target: Where to log.

    Returns:
        The names of the runs that were logged.

    Raises:
        UsageError: The results cannot be read, or the mode is unknown.
    """
    mode = target.resolved_mode
    if mode == "disabled":
        return []
    cells = read(results)
    entries = rank(cells)
    logged = []
    for (model, method), group in groupby(cells, key=lambda cell: (cell.model, cell.method)):
        own = list(group)
        board = [entry for entry in entries if (entry.model, entry.method) == (model, method)]
        name = f"{_short(model)} {method}"
        log = _method_logger(own, board)
        sources = sorted({cell.source for cell in own})
        content = [path.read_bytes() for path in sources]
        if _log_once(target, mode, name, "eval", [model, method], content, log):
            logged.append(name)
    table = json.dumps([_row(entry) for entry in entries]).encode()
    if entries and _log_once(target, mode, "leaderboard", "leaderboard", [], [table], _board_logger(entries)):
        logged.append("leaderboard")
        if mode == "online":
            _report(target)
    return logged


def _log_once(
    target: Target,
    mode: str,
    name: str,
    job_type: str,
    parts: list[str],
    content: list[bytes],
    log: Callable[[Any], dict[str, Any]],
) -> bool:
    """Log one run in full unless the same was logged before; return whether it was."""
    run_id = hashlib.sha256(json.dumps([target.project, target.group, job_type, *parts]).encode()).hexdigest()[:16]
    digest = hashlib.sha256(b"\0".join([mode.encode(), *content])).hexdigest()
    state = _read_state(target.folder)
    before = state.get(run_id) or {}
    if before.get("digest") == digest:
        return False
    try:
        folder = _run(target, mode, run_id, name, job_type, parts, log)
    except Exception as error:  # whatever W&B raises: an evaluation must not fail with it
        logger.warning("W&B: %s was not logged (%s: %s); results are on disk", name, type(error).__name__, error)
        return False
    if before.get("folder") and before["folder"] != folder:
        # Syncing two folders of one run would leave in W&B whichever came last.
        shutil.rmtree(target.folder / before["folder"], ignore_errors=True)
    state = _read_state(target.folder)
    state[run_id] = {"name": name, "digest": digest, "folder": folder}
    _write_state(target.folder, state)
    return True


def _run(
    target: Target,
    mode: str,
    run_id: str,
    name: str,
    job_type: str,
    parts: list[str],
    log: Callable[[Any], dict[str, Any]],
) -> str:
    """Log one run and return its folder, relative to the target's."""
    target.folder.mkdir(parents=True, exist_ok=True)
    # Artifacts wait here until they are synced, which may be on another machine: beside the runs, not in a home.
    os.environ.setdefault("WANDB_DATA_DIR", str(target.folder.resolve()))
    run = wandb.init(
        project=target.project,
        entity=target.entity,
        group=target.group,
        job_type=job_type,
        id=run_id,
        name=name,
        tags=sorted({part[-64:] for part in (*target.tags, *parts)}),
        dir=target.folder,
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, init_timeout=60, x_disable_stats=True, save_code=False),
    )
    try:
        run.config.update(_without_secrets(log(run)))
    except BaseException:
        run.finish(exit_code=1)
        raise
    folder = Path(run.dir).parent
    run.finish()
    return str(folder.relative_to(target.folder.resolve()))


def _method_logger(cells: Sequence[Cell], entries: Sequence[Entry]) -> Callable[[Any], dict[str, Any]]:
    """Return what logs one model and method."""

    def log(run: Any) -> dict[str, Any]:
        run.define_metric("length")
        for task in dict.fromkeys(cell.task for cell in cells):
            run.define_metric(f"{task}/*", step_metric="length")
        points = wandb.Table(columns=["task", "length", "metric", "value", "low", "high", "samples"])
        for length, group in groupby(sorted(cells, key=lambda cell: cell.length), key=lambda cell: cell.length):
            row: dict[str, Any] = {"length": length}
            for cell in group:
                low, high = interval(cell) or (None, None)
                key = f"{cell.task}/{cell.metric}"
                bounds = {"": cell.value, "_stderr": cell.stderr, "_low": low, "_high": high}
                row |= {f"{key}{name}": value for name, value in bounds.items() if value is not None}
                points.add_data(cell.task, length, cell.metric, cell.value, low, high, cell.samples)
            run.log(row)
        run.log({"points": points})
        _log_samples(run, cells)
        summary: dict[str, Any] = {}
        for entry in entries:
            row = _row(entry)
            summary |= {f"{entry.task}/{key}": row[key] for key in SUMMARY}
        reports = {path: json.loads(path.read_text(encoding="utf-8")) for path in {cell.source for cell in cells}}
        run.summary.update(summary | _throughput(cells, reports))
        config = _config(cells[0], list(reports.values()))
        _log_files(run, cells, config)
        return config

    return log


SUMMARY = ("effective_length", "mean", "rank", "nll", "peak_bytes", "decode_s", "prefill_s", "p_best")


def _board_logger(entries: Sequence[Entry]) -> Callable[[Any], dict[str, Any]]:
    """Return what logs the leaderboard as one table."""

    def log(run: Any) -> dict[str, Any]:
        rows = [_row(entry) for entry in entries]
        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        run.log({"leaderboard": table})
        return {"entries": len(rows)}

    return log


def _row(entry: Entry) -> dict[str, Any]:
    """Return an entry of the leaderboard as flat values."""
    low, high = entry.mean_interval or (None, None)
    costs = {name: entry.costs.get(name) for name in ("peak_bytes", "decode_s", "prefill_s")}
    return {
        "model": entry.model,
        "task": entry.task,
        "rank": entry.rank,
        "method": entry.method,
        "metric": entry.metric,
        "effective_length": entry.effective_length,
        "mean": entry.mean,
        "mean_low": low,
        "mean_high": high,
        "nll": entry.loss,
        "p_best": entry.p_best,
        **costs,
    }


def _log_samples(run: Any, cells: Sequence[Cell]) -> None:
    """Log some samples of every task; prompts, which may be long, are in the artifact."""
    table = wandb.Table(columns=["task", "length", "metric", "score", "expected", "found"])
    for _, group in groupby(cells, key=lambda cell: cell.name):
        cell = next(group)
        for answer in answers(cell)[:SAMPLES]:
            texts = (text[:SAMPLE_LENGTH] for text in (answer.expected, answer.found))
            table.add_data(cell.task, cell.length, cell.metric, answer.score, *texts)
    if table.data:
        run.log({"samples": table})


def _log_files(run: Any, cells: Sequence[Cell], config: dict[str, Any]) -> None:
    """Attach results and samples files as an artifact."""
    name = re.sub(r"[^\w.-]+", "-", f"{_short(cells[0].model)}-{cells[0].method}-results").strip("-")[-120:]
    artifact = wandb.Artifact(name, type="results", metadata=_without_secrets(config))
    for path in sorted({cell.source for cell in cells}):
        artifact.add_file(str(path), name=path.name)
    for path in sorted({samples_path(cell) for cell in cells if has_samples(cell)}):
        artifact.add_file(str(path), name=path.name)
    run.log_artifact(artifact)


def _config(cell: Cell, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return every parameter and where the numbers come from."""
    report = max(reports, key=lambda report: report.get("date") or 0)
    keys = ("git_hash", "lm_eval_version", "transformers_version", "task_hashes", "versions", "n-shot", "date")
    return {
        "model": cell.model,
        "method": cell.method,
        **report["config"],
        **{key: report[key] for key in keys if key in report},
    }


def _throughput(cells: Sequence[Cell], reports: dict[Path, dict[str, Any]]) -> dict[str, float]:
    """Return seconds of evaluation, and tokens per second over the files that say how long they took."""
    seconds, tokens = 0.0, 0
    for path, report in reports.items():
        try:
            seconds += float(report["total_evaluation_time_seconds"])
        except (KeyError, TypeError, ValueError):
            continue
        lengths = {cell.name: (cell.samples or 0) * cell.length for cell in cells if cell.source == path}
        tokens += sum(lengths.values())
    return {"evaluation_seconds": seconds, "tokens_per_s": tokens / seconds} if seconds else {}


def _without_secrets(value: Any, name: str = "") -> Any:
    """Return a configuration in which whatever is named like a secret is hidden, in `name=value` texts too."""
    if isinstance(value, dict):
        return {key: _without_secrets(part, str(key)) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_secrets(part, name) for part in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if SECRET.search(name) else SECRET_ARGUMENT.sub(rf"\1{HIDDEN}", value)


def _report(target: Target) -> None:
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


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    part = folder / f"{STATE}.part"
    part.write_text(json.dumps(state, indent=2), encoding="utf-8")
    part.replace(folder / STATE)


def _short(model: str) -> str:
    """Return the last part of a model's name or path."""
    return Path(model).name
