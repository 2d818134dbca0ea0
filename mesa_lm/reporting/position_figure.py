"""Draw the loss by position within inputs of one length."""

from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.reporting.figure_style import house_style, lines_of, short_names

POSITION = "^nll_([0-9]+)_([0-9]+)$"  # NLL of the tokens from one position to another


@house_style()
def position_figure(table: pd.DataFrame, length: int | None = None) -> Figure:
    """Return a figure of the mean NLL by position, a line per model and method with 95% bands.

    Args:
        table: Rows of `Results.table`, all of one task; those named `nll_FROM_TO` are drawn.
        length: Input length in tokens; None for the longest there is.

    Raises:
        UsageError: If no row says a position, or none has that length.
    """
    places = table.metric.str.extract(POSITION).astype(float)
    points = table.assign(start=places[0], end=places[1], middle=places.mean(axis=1))[places[0].notna()]
    if points.empty:
        raise UsageError("no NLL by position in the results: needed are results of long_ppl")
    lengths = sorted(set(points.length))
    if length is None:
        length = lengths[-1]
    if length not in lengths:
        raise UsageError(f"no NLL by position at length {length} (allowed: {', '.join(map(str, lengths))})")
    points = points[points.length == length].sort_values("start")
    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for own, label, colour, marker in lines_of(points):
        axes.plot(own.middle, own.value, color=colour, marker=marker, label=fill(label, 60))
        low, high = (own[bound].fillna(own.value) for bound in ("low", "high"))
        axes.fill_between(own.middle, low, high, color=colour, alpha=0.15, linewidth=0)
    for train_length in sorted(set(points.train_length.dropna())):
        label = f"training length T = {length_label(train_length)}"
        axes.axvline(train_length, color="0.35", linestyle=":", label=label)
    axes.set_xscale("log", base=2)
    edges = [int(edge) for edge in sorted({*points.start, *points.end} - {0})]
    axes.set_xticks(edges, [length_label(edge) for edge in edges])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("position (tokens), each point the middle of its stretch")
    axes.set_ylabel("mean NLL (nats per token)")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    title = f"{points.task.iloc[0]}: NLL by position in inputs of {length_label(length)} tokens"
    axes.set_title(title + "\n", fontsize=12, loc="left")
    names, samples = list(short_names(points).values()), points.samples.iloc[0]
    parts = [f"model {names[0]}"] if len(names) == 1 else []
    parts += [] if pd.isna(samples) else [f"{samples} samples"]
    subtitle = "; ".join([*parts, "bands: 95 % confidence", "lower is better"])
    axes.text(0, 1.04, subtitle, transform=axes.transAxes, fontsize=9, color="0.35")
    axes.legend(frameon=False, fontsize=9)
    return figure
