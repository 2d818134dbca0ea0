"""What all figures share: colours, lines of a table with their labels, and how a figure is written."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from mesa_lm.errors import UsageError
from mesa_lm.reporting.costs import COSTS
from mesa_lm.reporting.files import save_file

# Okabe and Ito 2008, Color universal design: told apart by all common forms of colour vision. Yellow, too faint on
# white, is left out. The numbers of colours and markers share no factor, so 56 lines differ in one or the other.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# What keeps the time of drawing out of the file, so that equal results give equal files.
TIMELESS: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
METRIC_LABELS = {
    "acc": "accuracy",
    "exact_match": "exact match",
    "nll": "mean NLL (nats per token)",
    "tail_nll": "NLL of the tail (nats per token)",
    **{name: cost.axis for name, cost in COSTS.items()},
}


class Line(NamedTuple):
    """Hold one model and method of a figure: its rows, and how it is shown."""

    points: pd.DataFrame
    label: str
    colour: str
    marker: str


@contextmanager
def house_style() -> Iterator[None]:
    """Make and write figures inside; a decorator too."""
    with matplotlib.rc_context({"svg.hashsalt": "mesa-lm", "axes.spines.top": False, "axes.spines.right": False}):
        yield


def lines_of(table: pd.DataFrame) -> Iterator[Line]:
    """Yield the models and methods of a table, each model's origin first: the baseline keeps its colour.

    Args:
        table: Rows of `Results.table`; those of a line keep their order.
    """
    names = short_names(table)
    ordered = table.assign(is_method=table.method != "origin")
    groups = ordered.groupby(["model", "is_method", "method"])
    for ((model, _, method), points), colour, marker in zip(groups, cycle(COLOURS), cycle(MARKERS), strict=False):
        label = str(method) if len(names) == 1 else f"{names[str(model)]}: {method}"
        yield Line(points, label, colour, marker)


def short_names(table: pd.DataFrame) -> dict[str, str]:
    """Return the last part of each model's name, or the whole where that would be the same for two models."""
    full = set(table.model)
    last = {name: Path(name).name for name in full}
    return last if len(set(last.values())) == len(full) else {name: name for name in full}


def save_figure(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write a figure; equal figures give equal files.

    Args:
        figure: The figure, made in `house_style`.
        path: The file to write, `.png`, `.svg` or `.pdf`; missing folders are created.
        dpi: Pixels per inch.

    Raises:
        UsageError: If the file has another suffix or cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in TIMELESS:
        raise UsageError(f"{path}: cannot draw a file with suffix {path.suffix!r} (allowed: {', '.join(TIMELESS)})")
    save_file(path, figure_bytes(figure, suffix, dpi))


def figure_bytes(figure: Figure, suffix: str, dpi: int = 160) -> bytes:
    """Return the content of a figure's file."""
    content = io.BytesIO()
    with house_style():
        figure.savefig(content, format=suffix[1:], dpi=dpi, metadata=TIMELESS[suffix])
    return content.getvalue()
