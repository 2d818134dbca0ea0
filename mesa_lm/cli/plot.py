"""The command `mesa-lm plot`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mesa_lm.cli.damage import refuse_damage, report_damage
from mesa_lm.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mesa_lm.reporting.results import Results


def plot(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Results files of `lm_eval --output_path`, or folders that hold some.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to draw: .png, .svg or .pdf. Default: ./TASK_METRIC.png.", show_default=False),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric to draw. Default: acc, or nll where there is none.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task group to draw, where the results hold several.", show_default=False)
    ] = None,
    by: Annotated[
        Literal["length", "depth", "position", "cost"],
        typer.Option(
            help="Draw against input length; depth and length (passkey_grid); position (long_ppl); time and memory."
        ),
    ] = "length",
    length: Annotated[
        int | None,
        typer.Option(help="With --by position: the input length. Default: the longest.", show_default=False),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a damaged file. Default: leave it out, name it, exit with 1.")
    ] = False,
) -> None:
    """Draw a metric against input length, depth or position.

    One line or heat map per model and method, with 95% confidence intervals. Of several results of one model, method,
    task and length the newest is drawn. Prints the path of the picture.
    """
    from mesa_lm.reporting.depth_figure import depth_figure
    from mesa_lm.reporting.figure_style import save_figure
    from mesa_lm.reporting.length_figure import length_figure
    from mesa_lm.reporting.position_figure import position_figure
    from mesa_lm.reporting.results import read

    if length is not None and by != "position":
        raise UsageError("--length goes with --by position only")
    if metric is not None and by == "cost":
        raise UsageError("--by cost draws the metric that the leaderboard ranks by; leave --metric out")
    if metric is not None and by == "position":
        raise UsageError("--by position draws nll; leave --metric out")
    found = read(results)
    if strict:
        refuse_damage(found.problems)
    if by == "cost":
        figure, name = _cost_figure(found, task)
        path = out or Path(f"{_as_file_name(name)}_cost.png")
        save_figure(figure, path)
        print(path)
        report_damage(found.problems)
        return
    if metric is None:
        measured = set(found.where(task=task).table.metric)
        has_loss_alone = "nll" in measured and "acc" not in measured
        metric = "nll" if by == "position" or (by == "length" and has_loss_alone) else "acc"
    chosen = found.select(metric, task).table
    name = chosen.task.iloc[0]
    same_task = found.where(task=name).table
    if by == "depth":
        figure = depth_figure(same_task, metric)
    elif by == "position":
        figure = position_figure(same_task, length)
    else:
        figure = length_figure(chosen, same_task)
    drawn = _as_file_name(f"{name}_{metric if by == 'length' else by}")
    path = out or Path(f"{drawn}.png")
    save_figure(figure, path)
    print(path)
    report_damage(found.problems)


def _as_file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def _cost_figure(found: Results, task: str | None) -> tuple[Figure, str]:
    """Return the figure of scores against costs of the only model and task, and the task."""
    from mesa_lm.reporting.cost_figure import cost_figure
    from mesa_lm.reporting.figure_style import FIGURE_WIDTH
    from mesa_lm.reporting.ranking import rank

    entries = [entry for entry in rank(found) if task in (None, entry.task)]
    boards = sorted({(entry.model, entry.task) for entry in entries})
    if len(boards) != 1:
        told = ", ".join(f"{model}: {name}" for model, name in boards) or "none"
        raise UsageError(f"--by cost draws one model and task, found {told}; give its results, and --task")
    figure = cost_figure(entries, FIGURE_WIDTH)
    if figure is None:
        raise UsageError("--by cost needs two methods with a time or a peak memory, of `mesa-lm bench` or a sweep")
    return figure, boards[0][1]
