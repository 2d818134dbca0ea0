"""What `mesa-lm leaderboard --choose` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesa_lm.cli.damage import refuse_damage, report_damage
from mesa_lm.lengths import length_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesa_lm.reporting.choosing import Choice


def print_choices(
    choice: Sequence[Path], report: Sequence[Path], metric: str | None, out: Path | None, strict: bool
) -> None:
    """Choose the setting of each method, and print or write what was chosen.

    Args:
        choice: Results to choose by.
        report: Results to report, of other samples.
        metric: To choose by.
        out: A JSON file to write; None prints tables.
        strict: Whether a damaged file stops it.
    """
    from mesa_lm.reporting.choosing import choose
    from mesa_lm.reporting.files import save_file
    from mesa_lm.reporting.results import read

    found = [read(paths) for paths in (choice, report)]
    problems = [problem for one in found for problem in one.problems]
    if strict:
        refuse_damage(problems)
    chosen = choose(found[0], found[1], metric)
    if out is None:
        for one in chosen:
            _print_choice(one)
    else:
        rows = [{**one._asdict(), "settings": [setting._asdict() for setting in one.settings]} for one in chosen]
        save_file(out, json.dumps(rows, indent=2))
        print(out)
    report_damage(problems)


def _print_choice(choice: Choice) -> None:
    """Print the settings of a method, the chosen one first, and how sure it is."""
    console = Console()
    over = ", ".join(map(length_label, choice.lengths))
    console.print(Text(f"{choice.model}: {choice.task}, {choice.metric}, mean over {over}", style="bold"))
    table = Table("setting", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("to choose by", "best in", "to report", "95 %"):
        table.add_column(title, justify="right", no_wrap=True)
    for setting in choice.settings:
        table.add_row(
            Text(setting.label),
            f"{setting.chosen_by:.3f}",
            f"{setting.support:.0%}",
            "" if setting.value is None else f"{setting.value:.3f}",
            "" if setting.interval is None else f"{setting.interval.low:.3f} to {setting.interval.high:.3f}",
        )
    console.print(table)
    best, second = choice.settings[:2]
    told = [f"chosen: {best.label}, the best in {best.support:.0%} of resampled sets of documents"]
    if choice.p_second is not None:
        told.append(f"a difference to {second.label} that large is by chance with p = {choice.p_second:.2g}")
    if choice.gain is not None:
        sure = "" if choice.p_gain is None else f" (p = {choice.p_gain:.2g})"
        told.append(f"on the samples to report it is {choice.gain:+.3f} against the defaults{sure}")
    if best.value is None:
        told.append("it was not evaluated on the samples to report")
    for line in told:
        console.print(Text(f"  {line}"))
    console.print()
