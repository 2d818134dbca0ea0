"""Draw what methods score against what they cost, with those that none beats in both."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter, StrMethodFormatter

from mesa_lm.lengths import length_label
from mesa_lm.reporting.costs import COSTS
from mesa_lm.reporting.figure_style import (
    GRID,
    MUTED,
    Look,
    add_frame,
    house_style,
    lines_of,
)
from mesa_lm.reporting.ranking import Entry, mean_over
from mesa_lm.reporting.results import table_of

PANEL_HEIGHT = 2.6  # inches
TIMES = ("prefill_s", "sample_s")  # the first that was measured


@house_style()
def cost_figure(entries: Sequence[Entry], width: float) -> Figure | None:
    """Return a figure of the mean score against time and against peak memory, with the Pareto front of each.

    Args:
        entries: Those of one model and task.
        width: Of the figure in inches.

    Returns:
        The figure; None where fewer than two methods have a cost, or no length is common to those that have.
    """
    shown = [entry for entry in entries if entry.costs]
    time = next((name for name in TIMES if any(name in entry.costs for entry in shown)), None)
    costs = [name for name in (time, "peak_bytes") if name and sum(name in entry.costs for entry in shown) > 1]
    common = set.intersection(*(set(entry.lengths) for entry in shown)) if shown else set()
    if not costs or not common:
        return None
    scores = {entry.method: mean_over([p for p in entry.points if p.length in common]) or 0.0 for entry in shown}
    looks = {line.label: line.look for line in lines_of(table_of(point for entry in entries for point in entry.points))}
    figure = Figure(figsize=(width, PANEL_HEIGHT * len(costs)))
    panels = figure.subplots(len(costs), 1, squeeze=False)[:, 0]
    handles: dict[str, Artist] = {}
    for axes, cost in zip(panels, costs, strict=True):
        placed = {e.method: (e.costs[cost] / COSTS[cost].divisor, scores[e.method]) for e in shown if cost in e.costs}
        handles |= _add_points(axes, placed, looks)
        _add_front(axes, pareto_front(placed, entries[0].higher_is_better), placed)
        _finish(axes, cost, entries[0], scores)
    lengths = sorted(common)
    over = " to ".join(map(length_label, dict.fromkeys((lengths[0], lengths[-1]))))
    at = {entry.cost_length for entry in shown if entry.cost_length}
    told = [
        f"model {Path(entries[0].model).name}",
        f"mean over {over}",
        *([f"costs at {length_label(*at)}"] if len(at) == 1 else []),
    ]
    title = f"{entries[0].task}: mean {entries[0].metric} against costs"
    about = f"{'; '.join(told)}; line: what no other method beats in both"
    add_frame(figure, title, about, [(handle, label) for label, handle in handles.items()])
    return figure


def pareto_front(placed: Mapping[str, tuple[float, float]], higher_is_better: bool = True) -> list[str]:
    """Return the methods that no other one beats, by their cost.

    Args:
        placed: Cost and score of each method.
        higher_is_better: Direction of the score; less is always better of a cost.

    Returns:
        Those for which no other method has at most the cost and at least the score, one of the two strictly.
    """
    sign = 1 if higher_is_better else -1
    found: list[str] = []
    best: tuple[float, float] | None = None
    for method in sorted(placed, key=lambda name: (placed[name][0], -sign * placed[name][1], name)):
        cost, score = placed[method]
        if best is None or sign * score > sign * best[1] or (cost, score) == best:
            found.append(method)
            best = (cost, score)
    return found


def _add_points(axes: Axes, placed: Mapping[str, tuple[float, float]], looks: Mapping[str, Look]) -> dict[str, Artist]:
    """Draw a mark per method, and return the handles of a legend by method."""
    return {
        method: axes.plot(
            cost, score, markersize=7, clip_on=False, zorder=3, **{**looks[method].style, "linestyle": "none"}
        )[0]
        for method, (cost, score) in placed.items()
    }


def _add_front(axes: Axes, front: Sequence[str], placed: Mapping[str, tuple[float, float]]) -> None:
    """Draw the front as steps: what can be had for a cost."""
    costs, scores = zip(*(placed[method] for method in front), strict=True)
    axes.step(costs, scores, where="post", color=MUTED, linewidth=1.2, zorder=2)


def _finish(axes: Axes, cost: str, entry: Entry, scores: Mapping[str, float]) -> None:
    """Scale and label the axes."""
    axes.set_xscale("log")
    axes.set_xlabel(COSTS[cost].axis)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    low, high = axes.get_xlim()
    if high / low < 20:  # too few powers of ten to read the axis by
        axes.set_xticks([low * (high / low) ** part for part in (0.1, 0.5, 0.9)])
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(f"mean {entry.metric}")
    if entry.higher_is_better and all(0 <= score <= 1 for score in scores.values()):
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
