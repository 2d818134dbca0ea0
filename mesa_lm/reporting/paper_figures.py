"""The Mesa paper's figures over input length in its form: a panel per model, and its own numbers where known."""

import math
from collections import Counter
from typing import NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter, StrMethodFormatter

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.reporting.costs import COSTS
from mesa_lm.reporting.figure_style import (
    GRID,
    METRIC_LABELS,
    MUTED,
    PAPER,
    add_frame,
    counted,
    house_style,
    lines_of,
    short_names,
)
from mesa_lm.reporting.paper_numbers import PaperNumbers
from mesa_lm.reporting.results import Results

PANEL_WIDTH, PANEL_HEIGHT, ACROSS = 3.4, 2.5, 3  # inches, and panels side by side
MOST_TICKS = 5  # of a panel's length axis


class FigureForm(NamedTuple):
    """Hold what a figure of the paper shows.

    Attributes:
        title: What it shows.
        task: The task group; None: that of a benchmark.
        metrics: A panel of each model for each.
    """

    title: str
    task: str | None
    metrics: tuple[str, ...]


FIGURES = {
    "figure-3": FigureForm("Passkey retrieval", "passkey_long", ("acc",)),
    "figure-4": FigureForm("Mean NLL per token", "long_ppl", ("nll",)),
    "figure-5": FigureForm("Memory and time of a prefill", None, ("peak_bytes", "prefill_s")),
    "figure-7": FigureForm("LongEval, lines", "longeval_lines", ("acc",)),
    "figure-8": FigureForm("Passkey retrieval, enhanced prompts", "passkey_long", ("acc",)),
    "figure-9": FigureForm("Passkey retrieval by the weave of Mesa's last chunk", "passkey_long", ("acc",)),
}


@house_style()
def paper_figure(exhibit: str, results: Results, numbers: PaperNumbers) -> Figure:
    """Return one of the paper's figures, from results of one's own.

    Args:
        exhibit: One of `FIGURES`.
        results: Of any models and methods.
        numbers: What the paper itself says; drawn as crosses in the colour of the method.

    Raises:
        UsageError: The results have nothing that the figure shows.
    """
    form = FIGURES[exhibit]
    table = results.table[results.table.metric.isin(form.metrics)]
    table = table[table.task == form.task] if form.task else table[table.task.str.startswith("bench_")]
    table = table[table.task == table.task.min()] if not form.task else table
    if table.empty:
        of = f"task {form.task}" if form.task else "`mesa-lm bench`"
        raise UsageError(f"{exhibit} needs {' or '.join(form.metrics)} of {of}, which these results have not")
    names = short_names(table)
    panels = [(model, metric) for model in sorted(names) for metric in form.metrics]
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(max(2, across) * PANEL_WIDTH, down * PANEL_HEIGHT))
    legend: dict[str, Artist] = {}
    known = 0
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (model, metric) in zip(grid.flat, panels, strict=False):
        points = table[(table.model == model) & (table.metric == metric)]
        known += _fill_panel(axes, points, exhibit, numbers, legend)
        axes.set_title(names[model], fontsize="medium", color=MUTED, loc="left")
    told = [counted(table.samples, "sample" if form.task else "repeat")] if table.samples.notna().any() else []
    told.append("dotted: training length T")
    told.append("crosses: typed in from the paper" if known else "the paper's numbers: not available")
    add_frame(
        figure,
        f"{form.title}, as {exhibit.replace('-', ' ')} of the Mesa paper",
        "; ".join(told),
        [(artist, label) for label, artist in legend.items()],
    )
    return figure


def _fill_panel(
    axes: Axes, points: pd.DataFrame, exhibit: str, numbers: PaperNumbers, legend: dict[str, Artist]
) -> int:
    """Draw the lines of one model and metric, and return how many of the paper's numbers stand among them."""
    model, task, metric = points.iloc[0][["model", "task", "metric"]]
    scale = COSTS[metric].divisor if metric in COSTS else 1
    known = 0
    lines = lines_of(points)
    bare = Counter(line.label.partition(" (")[0] for line in lines)
    for line in lines:
        own = line.points
        (drawn,) = axes.plot(
            own.length, own.value / scale, linewidth=1.6, markersize=4, clip_on=False, **line.look.style
        )
        name = line.label.partition(" (")[0]
        legend.setdefault(name if bare[name] == 1 else line.label, drawn)  # parameters that follow T are one entry
        if own.low.notna().all():
            axes.fill_between(
                own.length, own.low / scale, own.high / scale, color=line.look.colour, alpha=0.12, linewidth=0
            )
        said = {n: numbers.value(model, str(own.method.iloc[0]), task, str(n), metric) for n in own.length}
        theirs = {length: value / scale for length, value in said.items() if value is not None}
        known += len(theirs)
        if theirs:  # nothing has no place, which the layout needs
            axes.plot(list(theirs), list(theirs.values()), "x", color=line.look.colour, markersize=8, clip_on=False)
    for length in set(points.train_length.dropna()):
        axes.axvline(length, color=MUTED, linestyle=":", linewidth=1.4, zorder=1)
    axes.set_ylabel(METRIC_LABELS.get(metric, metric))
    step = 1024 * 2 ** math.ceil(math.log2(max(points.length.max() / 1024 / MOST_TICKS, 1)))
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(
        lambda length, _: length_label(round(length)) if length % 1024 == 0 else f"{length:g}"
    )
    axes.set_xlabel("input length (tokens)")
    is_share = bool(points.is_share.all()) or metric == "acc"
    if is_share or metric in COSTS:
        axes.set_ylim(0, 1 if is_share else None)
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0, " %") if is_share else StrMethodFormatter("{x:g}"))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_facecolor(PAPER)
    return known
