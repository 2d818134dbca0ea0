"""A leaderboard as one page for the browser."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label
from mesa_lm.reporting.changes import Change
from mesa_lm.reporting.figure_style import GRID, INK, MAX_LINES, MUTED, PAPER, Look, counted, figure_bytes, lines_of
from mesa_lm.reporting.leaderboard_table import Board, Column, boards
from mesa_lm.reporting.length_figure import length_figure
from mesa_lm.reporting.lm_eval_files import ResultsFile
from mesa_lm.reporting.ranking import Entry
from mesa_lm.reporting.results import measurements
from mesa_lm.reporting.samples import Answer, answers

WRONG_ANSWERS = 3  # shown per method
ANSWER_LENGTH = 300  # characters of each
FIGURE_WIDTH = 4.3  # inches: at 72 pixels to the inch it fits a phone, and its text is no smaller than 10 pixels
# The page's colours of the same names follow the reader's choice of light or dark.
THEMED = {PAPER: "var(--paper)", INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}


class ShownBoard(NamedTuple):
    """Hold what the page shows of one model and task.

    Attributes:
        board: The table.
        columns: Its columns.
        about: Samples, training length and how it was run.
        figure: The curves as inline SVG; empty where all methods are gone.
        looks: How the lines of the curves look by method; empty where the curves are a heat map.
        wrong: Methods with the shortest length that has wrong answers, and some of them.
    """

    board: Board
    columns: list[Column]
    about: list[str]
    figure: Markup
    looks: Mapping[str, Look]
    wrong: list[tuple[str, int, list[Answer]]]


def render_html(changes: Sequence[Change], files: Mapping[Path, ResultsFile]) -> str:
    """Return a page that holds everything it needs and loads nothing.

    Args:
        changes: The entries, with what changed.
        files: The results files that they come from.
    """
    environment = Environment(
        loader=PackageLoader("mesa_lm.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"tokens": length_label, "breakable": _breakable}
    sections = [_section(board, files) for board in boards(changes)]
    return environment.get_template("leaderboard.html").render(
        sections=sections,
        # What a column means, once, under its title without length and unit.
        meanings={re.sub(r" (at|\().*", "", column.title): column.about for one in sections for column in one.columns},
        provenance=provenance(files.values()),
        answer_length=ANSWER_LENGTH,
        themed=THEMED,
    )


def provenance(files: Iterable[ResultsFile]) -> list[str]:
    """Return when results were measured and with which versions, as far as their files say it."""
    files = list(files)
    dates = sorted({f"{datetime.fromtimestamp(file.date, UTC):%Y-%m-%d}" for file in files if file.date})
    torch = (re.match(r"PyTorch version: (\S+)", str(file.content.get("pretty_env_info"))) for file in files)
    versions = {
        "mesa-lm": [file.mesa_lm.get("version") for file in files],
        "commit": [file.commit for file in files],
        "lm-eval": [file.content.get("lm_eval_version") for file in files],
        "transformers": [file.content.get("transformers_version") for file in files],
        "torch": [*(match and match[1] for match in torch), *(file.content.get("torch_version") for file in files)],
    }
    told = [f"measured {dates[0]}" if len(dates) == 1 else f"measured {dates[0]} to {dates[-1]}"] if dates else []
    for name, found in versions.items():
        if distinct := sorted({str(version) for version in found if version}):
            told.append(f"{name} {', '.join(distinct)}")
    return told


def _breakable(text: str) -> Markup:
    """Return a text in which a browser may break lines behind the signs that join words."""
    return Markup(re.sub(r"([_=/,])", r"\1<wbr>", str(escape(text))))


def _section(board: Board, files: Mapping[Path, ResultsFile]) -> ShownBoard:
    entries = [change.now for change in board.changes if change.now]
    if not entries:
        return ShownBoard(board, board.columns, [], Markup(), {}, [])
    points = pd.concat([entry.points for entry in entries])
    lines = lines_of(points)
    looks = {line.label: line.look for line in lines} if len(lines) <= MAX_LINES else {}
    wrong = [(entry.method, *found) for entry in entries if (found := _wrong_answers(entry))]
    return ShownBoard(board, board.columns, _about(points, files), _inline_figure(points), looks, wrong)


def _about(points: pd.DataFrame, files: Mapping[Path, ResultsFile]) -> list[str]:
    """Return of how many samples a table is, up to which training length, and how its models were run."""
    told = [f"{count} per length"] if (count := counted(points.samples, "sample")) else []
    told += [f"training length T = {length_label(length)}" for length in sorted(set(points.train_length.dropna()))]
    runs = [files[path] for path in sorted(set(points.source))]
    tasks = sorted(
        {str((run.content.get("versions") or {}).get(name, "")) for run in runs for name in set(points.name)}
    )
    told += [f"task version {', '.join(filter(None, tasks))}"] if any(tasks) else []
    settings = (
        " on ".join(str(run.mesa_lm[key]) for key in ("dtype", "device") if run.mesa_lm.get(key)) for run in runs
    )
    return told + sorted({setting.removeprefix("torch.") for setting in settings if setting})


def _inline_figure(points: pd.DataFrame) -> Markup:
    """Return the curves as SVG with the page's fonts and colours; matplotlib escapes its texts."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        text = figure_bytes(length_figure(points, width=FIGURE_WIDTH), ".svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    colours = re.compile("|".join(THEMED))

    def themed(tag: re.Match[str]) -> str:
        return colours.sub(lambda colour: THEMED[colour[0]], re.sub(r'^<g id="[^"]*"', "<g", tag[0]))

    text = re.sub(r"<[^>]+>", themed, text)
    task, metric = points.iloc[0][["task", "metric"]]
    size = re.match(r'<svg [^>]*?width="([\d.]+)pt"[^>]*?viewBox="([^"]*)"[^>]*>', text, flags=re.DOTALL)
    assert size, "matplotlib gives an SVG its size"
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}" style="min-width: {}px">').format(
        f"{task}: {metric} by input length", size[2], math.ceil(float(size[1]))
    )
    return head + Markup(text[size.end() :])


def _wrong_answers(entry: Entry) -> tuple[int, list[Answer]] | None:
    """Return the shortest length that has wrong answers, and some of them; None where there are none."""
    if not entry.higher_is_better:
        return None
    for measured in measurements(entry.points):
        wrong = (one for one in answers(measured) if isinstance(one.score, int | float) and one.score < 1)
        with suppress(UsageError):  # a damaged file, which the entry's problems name
            if shown := list(islice(wrong, WRONG_ANSWERS)):
                return measured.length, shown
    return None
