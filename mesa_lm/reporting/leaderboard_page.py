"""A leaderboard as one page for the browser."""

import gzip
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.methods.base import Method
from mesa_lm.methods.descriptions import KINDS, Description, describe
from mesa_lm.methods.parameters import declared
from mesa_lm.methods.registry import available_methods
from mesa_lm.reporting.changes import Change
from mesa_lm.reporting.cost_figure import cost_figure
from mesa_lm.reporting.figure_style import GRID, INK, MAX_LINES, MUTED, PAPER, Look, counted, figure_bytes, lines_of
from mesa_lm.reporting.leaderboard_table import COMMIT, KIND, KIND_MEANING, Board, Column, boards
from mesa_lm.reporting.length_figure import length_figure
from mesa_lm.reporting.lm_eval_files import Measurement, ResultsFile
from mesa_lm.reporting.method_labels import name_of
from mesa_lm.reporting.overall import OVERALL_COLUMNS, overall_tables
from mesa_lm.reporting.panels_figure import panels_figure
from mesa_lm.reporting.provenance import PARTS, listed, row_provenance, run_provenance
from mesa_lm.reporting.ranking import Entry
from mesa_lm.reporting.results import table_of
from mesa_lm.reporting.samples import Answer, answers

WRONG_ANSWERS = 3  # shown per method
ANSWER_LENGTH = 300  # characters of each
PAGE_FIGURE_WIDTH = 4.3  # inches: at 72 pixels to the inch it fits a phone, and its text is no smaller than 10 pixels
# The page's colours of the same names follow the reader's choice of light or dark.
THEMED = {PAPER: "var(--paper)", INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}


class ShownBoard(NamedTuple):
    """Hold what the page shows of one model and task.

    Attributes:
        board: The table.
        columns: Its columns.
        about: Samples, training length and how it was run.
        groups: The rows of each kind of method.
        figures: The curves, and the score against costs, as inline SVG; none where all methods are gone.
        looks: How the lines of the curves look by method.
        wrong: Methods with the shortest length that has wrong answers, and some of them.
    """

    board: Board
    columns: list[Column]
    about: list[str]
    groups: list[tuple[str, list[int]]]
    figures: list[Markup]
    looks: Mapping[str, Look]
    wrong: list[tuple[str, int, list[Answer]]]


class Definition(NamedTuple):
    """Hold what the page says of a method: its own words, and its parameters with their defaults."""

    about: Description
    parameters: str


def render_html(changes: Sequence[Change], files: Mapping[Path, ResultsFile], downloads: Mapping[str, str]) -> str:
    """Return a page that holds everything it needs and loads nothing.

    Args:
        changes: The entries, with what changed.
        files: The results files that they come from.
        downloads: Files to be saved from the page, by their names.
    """
    environment = Environment(
        loader=PackageLoader("mesa_lm.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"tokens": length_label, "breakable": _breakable, "name": name_of}
    sections = [_section(board, files) for board in boards(changes)]
    overall = list(overall_tables([change.now for change in changes if change.now]))
    return environment.get_template("leaderboard.html").render(
        sections=sections,
        # What a column means, once, under its title without length and unit; those of lengths need no words.
        meanings={
            re.sub(r" (at|\().*", "", column.title): column.about
            for one in sections
            for column in one.columns
            if not column.is_length
        }
        | {KIND: KIND_MEANING}
        | (
            {title: about for title, about in OVERALL_COLUMNS.items() if title not in ("#", "method")}
            if overall
            else {}
        ),
        choices={
            "model": sorted({one.board.model for one in sections}),
            "task": sorted({one.board.task for one in sections}),
        },
        definitions=_definitions(changes),
        provenance=provenance(files.values()),
        parts=PARTS,
        downloads={name: _packed(text) for name, text in downloads.items()},
        overall=overall,
        overall_columns=OVERALL_COLUMNS,
        answer_length=ANSWER_LENGTH,
        themed=THEMED,
    )


def provenance(files: Iterable[ResultsFile]) -> list[str]:
    """Return when results were measured and with which versions, as far as their files say it."""
    told = listed(map(run_provenance, files))
    shown = [name for name in PARTS if name in told and name not in ("model revision", "run as")]
    return [f"{name} {told[name]}" for name in shown]


def _breakable(text: str) -> Markup:
    """Return a text in which a browser may break lines behind the signs that join words."""
    return Markup(re.sub(r"([_=/,])", r"\1<wbr>", str(escape(text))))


def _section(board: Board, files: Mapping[Path, ResultsFile]) -> ShownBoard:
    entries = [change.now for change in board.changes if change.now]
    columns, groups = [column for column in board.columns if column.title not in (KIND, COMMIT)], _groups(board.changes)
    if not entries:
        return ShownBoard(board, columns, [], groups, [], {}, [])
    points = [point for entry in entries for point in entry.points]
    table = table_of(points)
    lines = lines_of(table)
    looks = {line.label: line.look for line in lines}
    title = f"{board.task}: {board.metric} by input length"
    draw = length_figure if len(lines) <= MAX_LINES else panels_figure
    figures = [_inline(draw(table, width=PAGE_FIGURE_WIDTH), title)]
    costs = cost_figure(entries, PAGE_FIGURE_WIDTH)
    figures += [] if costs is None else [_inline(costs, f"{board.task}: {board.metric} against costs")]
    wrong = [(entry.method, *found) for entry in entries if (found := _wrong_answers(entry))]
    return ShownBoard(board, columns, _about(points, files), groups, figures, looks, wrong)


def _about(points: Sequence[Measurement], files: Mapping[Path, ResultsFile]) -> list[str]:
    """Return of how many samples a table is, up to which training length, and how its models were run."""
    samples = counted(pd.Series([point.samples for point in points], dtype="Int64"), "sample")
    told = [f"{samples} per length"] if samples else []
    told += [
        f"training length T = {length_label(length)}"
        for length in sorted({point.train_length for point in points if point.train_length})
    ]
    found = row_provenance(points, files)
    told += [f"task version {found['task version']}"] if "task version" in found else []
    return told + ([found["run as"]] if "run as" in found else [])


def _packed(text: str) -> str:
    """Return a text in few letters of base64, which the page unpacks when it is asked for."""
    return b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _groups(changes: Sequence[Change]) -> list[tuple[str, list[int]]]:
    """Return the rows of each kind of method, kinds in their order and rows in that of their ranks."""
    found: dict[str, list[int]] = {}
    for row, change in enumerate(changes):
        found.setdefault(change.entry.kind, []).append(row)
    return sorted(found.items(), key=lambda group: KINDS.index(group[0]))


def _definitions(changes: Sequence[Change]) -> dict[str, Definition]:
    """Return what the methods of the page are, by their names, those that are installed here."""
    known = available_methods()
    names = sorted({name_of(change.entry.method) for change in changes} & known.keys())
    return {name: Definition(describe(known[name]), _defaults(known[name])) for name in names}


def _defaults(method: type[Method]) -> str:
    return ", ".join(f"{name}={declaration.shown}" for name, declaration in declared(method).items())


def _inline(figure: Figure, title: str) -> Markup:
    """Return a figure as SVG with the page's fonts and colours; matplotlib escapes its texts."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = figure_bytes(figure, ".svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    colours = re.compile("|".join(THEMED))

    def themed(tag: re.Match[str]) -> str:
        found = re.sub(r" font-family: [^;\"]*;", "", re.sub(r'^<g id="[^"]*"', "<g", tag[0]))
        # A tenth of a point is finer than a screen; most of a file is digits and line ends.
        found = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.1f}", found)
        return colours.sub(lambda colour: THEMED[colour[0]], found.replace("\n", ""))

    text = re.sub(r">\s+<", "><", re.sub(r"<[^>]+>", themed, text))
    size = re.match(r'<svg [^>]*?width="([\d.]+)pt"[^>]*?viewBox="([^"]*)"[^>]*>', text, flags=re.DOTALL)
    assert size, "matplotlib gives an SVG its size"
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}" style="min-width: {}px">').format(
        title, size[2], math.ceil(float(size[1]))
    )
    return head + Markup(text[size.end() :])


def _wrong_answers(entry: Entry) -> tuple[int, list[Answer]] | None:
    """Return the shortest length that has wrong answers, and some of them; None where there are none."""
    if not entry.higher_is_better:
        return None
    for measured in entry.points:
        wrong = (one for one in answers(measured) if isinstance(one.score, int | float) and one.score < 1)
        with suppress(UsageError):  # a damaged file, which the entry's problems name
            if shown := list(islice(wrong, WRONG_ANSWERS)):
                return measured.length, shown
    return None
