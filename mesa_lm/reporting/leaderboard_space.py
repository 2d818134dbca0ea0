"""Write a leaderboard as a folder that a Hugging Face Space or GitHub Pages serves as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mesa_lm.reporting.changes import Change
from mesa_lm.reporting.files import save_file
from mesa_lm.reporting.leaderboard_files import save_leaderboard
from mesa_lm.reporting.lm_eval_files import ResultsFile

# What a Space of Hugging Face reads of it is between the two lines.
README = """---
title: Length extrapolation leaderboard
sdk: static
app_file: index.html
---

Made by `mesa-lm leaderboard RESULTS --space FOLDER`. `index.html` is the leaderboard and loads nothing else;
`leaderboard.csv` and `leaderboard.json` are the same as data.
"""


def save_space(changes: Sequence[Change], folder: Path, files: Mapping[Path, ResultsFile]) -> None:
    """Write the page, the data and what the two services read.

    Args:
        changes: The entries, with what changed.
        folder: The folder; what it holds under these names is replaced.
        files: The results files that they come from.

    Raises:
        UsageError: A file cannot be written.
    """
    for name in ("index.html", "leaderboard.csv", "leaderboard.json"):
        save_leaderboard(changes, folder / name, files)
    save_file(folder / "README.md", README)
    save_file(folder / ".nojekyll", "")  # GitHub Pages serves the files as they are
