"""What all figures share: looks of methods, measured texts, the frame of title and legend, and writing files."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from mesa_lm.errors import UsageError
from mesa_lm.reporting.costs import COSTS
from mesa_lm.reporting.files import save_file
from mesa_lm.reporting.method_labels import name_of

PAPER, INK, MUTED, GRID = "#ffffff", "#1a1a1a", "#595959", "#e0e0e0"
# Okabe and Ito 2008, Color universal design: told apart by all common forms of colour vision, on white and on black.
# Yellow, too faint on white, is left out.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
MARKERS = ("D", "s", "^", "v", "P", "X", "o")
# No palette has so many colours as there are methods: of each colour the first has a full line and filled markers, the
# second a dashed line and open ones, the third a dotted line and half-filled ones. A fourth is for methods of others.
SHARED_COLOURS = (
    ("mesa", "dual_chunk", "star"),
    ("rerope", "leaky_rerope", "lampe"),
    ("stair", "self_extend", "dpe"),
    ("yarn", "linear", "gali"),
    ("dynamic_ntk", "ntk", "string"),
    ("lm_infinite", "streaming_llm", "infllm"),
    ("origin", "stock", "reattention"),
)
STROKES = ("solid", "dashed", "dotted", "dashdot")
FILLS = dict(zip(STROKES, ("full", "none", "bottom", "left"), strict=True))
FIGURE_WIDTH = 7.0  # inches
MAX_LINES = 8  # Of a figure; more are drawn as a heat map.
# What keeps the time of drawing out of the file, so that equal results give equal files.
TIMELESS: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
METRIC_LABELS = {
    "acc": "accuracy",
    "exact_match": "exact match",
    "nll": "mean NLL (nats per token)",
    "tail_nll": "NLL of the tail (nats per token)",
    **{name: cost.axis for name, cost in COSTS.items()},
}
FONT_SIZE, TITLE_SIZE = 10.0, 12.0  # points
MARGIN, LINE_SPACING = 0.1, 1.25  # inches, of the font size
HINTING = 1.05  # by how much letters fitted to whole pixels may be wider than their outlines
HANDLE = 0.62  # inches that a legend's line and the gap behind its label take
LEGEND_GAP = 4.0  # points between its entries


class Look(NamedTuple):
    """Hold how a method's line looks.

    Attributes:
        colour: Of line and markers.
        marker: Of the points.
        stroke: Of the line, one of `STROKES`; the fill of the markers follows it.
    """

    colour: str
    marker: str
    stroke: str

    @property
    def style(self) -> dict[str, Any]:
        """Arguments of matplotlib's `plot`."""
        return {
            "color": self.colour,
            "linestyle": self.stroke,
            "marker": self.marker,
            "fillstyle": FILLS[self.stroke],
            "markerfacecolor": PAPER if self.stroke == "dashed" else self.colour,
            "markerfacecoloralt": PAPER,
        }


LOOKS = {
    names[place]: Look(colour, marker, STROKES[place])
    for place in range(len(STROKES) - 1)
    for names, colour, marker in zip(SHARED_COLOURS, COLOURS, MARKERS, strict=True)
}
SPARE_LOOKS = tuple(Look(*look, STROKES[-1]) for look in zip(COLOURS, MARKERS, strict=True))


class Line(NamedTuple):
    """Hold one model and method of a figure: its rows, and how it is shown."""

    points: pd.DataFrame
    label: str
    look: Look


@contextmanager
def house_style() -> Iterator[None]:
    """Make and write figures inside; a decorator too."""
    style: dict[Any, Any] = {
        "svg.hashsalt": "mesa-lm",
        "text.parse_math": False,  # a dollar in a model's name is a dollar
        "font.size": FONT_SIZE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], INK),
        **dict.fromkeys(["axes.edgecolor", "xtick.color", "ytick.color"], MUTED),
        **dict.fromkeys(["figure.facecolor", "axes.facecolor"], PAPER),
    }
    with matplotlib.rc_context(style):
        yield


def lines_of(table: pd.DataFrame) -> list[Line]:
    """Return the models and methods of a table, each model's origin first.

    A method looks the same in every figure. Where a figure shows it with several parameters or models, the lines after
    the first take looks that no other line has; so does a method that is none of mesa-lm's. Which ones follows from
    their names, so that they too look alike in figures that show the same.

    Args:
        table: Rows of `Results.table`; those of a line keep their order.
    """
    names = short_names(table)
    ordered = table.assign(is_method=table.method.map(name_of) != "origin")
    groups = list(ordered.groupby(["model", "is_method", "method"]))
    own = {name_of(method) for method in table.method} & LOOKS.keys()
    spare = [*SPARE_LOOKS, *(look for name, look in LOOKS.items() if name not in own)]
    lines = []
    for (model, _, method), points in groups:
        name = name_of(str(method))
        look = LOOKS[name] if name in own else _take(spare, f"{model}: {method}")
        own.discard(name)
        lines.append(Line(points, str(method) if len(names) == 1 else f"{names[str(model)]}: {method}", look))
    return lines


def _take(spare: list[Look], label: str) -> Look:
    """Take the look that a label chooses of some, and leave it to no other label while there are more."""
    place = crc32(label.encode()) % len(spare)
    return spare.pop(place) if len(spare) > 1 else spare[place]


def short_names(table: pd.DataFrame) -> dict[str, str]:
    """Return the last part of each model's name, or the whole where that would be the same for two models."""
    full = set(table.model)
    last = {name: Path(name).name for name in full}
    return last if len(set(last.values())) == len(full) else {name: name for name in full}


def counted(counts: "pd.Series[int]", noun: str) -> str:
    """Return how many there are of something, such as "1 repeat" or "5 to 20 samples"; "" where that is unknown."""
    if counts.dropna().empty:
        return ""
    least, most = counts.min(), counts.max()
    return f"{least if least == most else f'{least} to {most}'} {noun}{'' if most == 1 else 's'}"


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """Return the width of the longest line of a text, in inches."""
    font = FontProperties(size=size)
    widths = (text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.splitlines())
    return HINTING * max(widths, default=0.0) / 72


def wrapped(text: str, width: float, size: float = FONT_SIZE) -> str:
    """Break a text into lines of a width in inches: at spaces, in longer words behind signs, else anywhere."""

    def fits(line: str) -> bool:
        return text_width(line, size) <= width

    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if fits(joined):
            lines[-1] = joined
            continue
        lines.append("")
        parts = [word] if fits(word) else re.findall(r"[^_=/,-]*[_=/,-]|[^_=/,-]+", word)
        for piece in chain.from_iterable([part] if fits(part) else part for part in parts):
            if not fits(lines[-1] + piece):
                lines.append("")
            lines[-1] += piece
    return "\n".join(filter(None, lines))


def ticks_with_room(places: Sequence[float], labels: Sequence[str], order: Sequence[int]) -> list[int]:
    """Return which ticks of an axis can be labelled without one label touching another.

    Args:
        places: Of the ticks, in inches.
        labels: Of the ticks.
        order: The ticks by their importance.
    """
    chosen: list[int] = []
    half = [text_width(label) / 2 + MARGIN / 2 for label in labels]
    for tick in order:
        if all(abs(places[tick] - places[other]) >= half[tick] + half[other] for other in chosen):
            chosen.append(tick)
    return sorted(chosen)


def add_frame(figure: Figure, title: str, subtitle: str, legend: Sequence[tuple[Artist, str]] = ()) -> None:
    """Write title, subtitle and legend around the axes; the figure becomes higher by what they take.

    Args:
        figure: The figure, as wide as it is to be and as high as the axes are.
        title: What is drawn.
        subtitle: Of what, and how sure it is.
        legend: Handles and labels of the lines.
    """
    width, body = figure.get_size_inches()
    room = width - 2 * MARGIN
    texts = [(wrapped(text, room, size), size) for text, size in ((title, TITLE_SIZE), (subtitle, FONT_SIZE)) if text]
    heights = [(text.count("\n") + 1) * size * LINE_SPACING / 72 for text, size in texts]
    labels = [wrapped(label, room - HANDLE) for _, label in legend]
    columns = _columns(labels, room)
    foot = max(map(_legend_height, columns)) + MARGIN if labels else 0.0
    height = body + sum(heights) + 2 * MARGIN + foot
    figure.set_figheight(height)
    tops = accumulate(heights, lambda top, part: top - part / height, initial=1 - MARGIN / height)
    for (text, size), top, colour in zip(texts, tops, (INK, MUTED), strict=False):
        figure.text(MARGIN / width, top, text, size=size, color=colour, va="top", linespacing=LINE_SPACING)
    if labels:
        figure.legend(
            [handle for handle, _ in legend],
            labels,
            loc="lower left",
            bbox_to_anchor=(MARGIN / width, MARGIN / 2 / height),
            borderpad=0,
            borderaxespad=0,
            handlelength=2.2,
            handletextpad=0.6,
            columnspacing=1.2,
            labelspacing=LEGEND_GAP / FONT_SIZE,
            ncols=len(columns),
            frameon=False,
        )
    figure.set_layout_engine("constrained", rect=(0, foot / height, 1, body / height))


def _columns(labels: Sequence[str], room: float) -> list[list[str]]:
    """Return a legend's entries in as many columns as fit into the room, split as matplotlib does."""
    for count in range(len(labels), 1, -1):
        columns = [list(column) for column in np.array_split(np.array(labels, dtype=object), count)]
        widths = [max(map(text_width, column)) + HANDLE for column in columns]
        if sum(widths) <= room:
            return columns
    return [list(labels)]


def _legend_height(column: Sequence[str]) -> float:
    """Return the height of a column of a legend, in inches."""
    lines = sum(label.count("\n") + 1 for label in column)
    return (lines * LINE_SPACING * FONT_SIZE + (len(column) - 1) * LEGEND_GAP) / 72


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
