"""The command `mesa-lm plot`."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from mesa_lm.cli.damage import refuse_damage, report_damage
from mesa_lm.errors import UsageError


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
        Literal["length", "depth", "position"],
        typer.Option(help="Draw against input length; depth and length (passkey_grid); position (long_ppl)."),
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
    if metric is not None and by == "position":
        raise UsageError("--by position draws nll; leave --metric out")
    found = read(results)
    if strict:
        refuse_damage(found.problems)
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
    drawn = re.sub(r"[^\w.+-]+", "_", f"{name}_{metric if by == 'length' else by}")
    path = out or Path(f"{drawn}.png")
    save_figure(figure, path)
    print(path)
    report_damage(found.problems)
