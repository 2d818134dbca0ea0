"""Cells of results, made by hand."""

from pathlib import Path
from typing import Any

from mesa_lm.reporting.results import Cell


def line(values: dict[int, float], **changes: Any) -> list[Cell]:
    """Return the cells of one line."""
    shared: dict[str, Any] = {
        "model": "org/base",
        "method": "mesa",
        "task": "passkey_long",
        "name": "passkey_long_1k",
        "metric": "acc",
        "stderr": None,
        "samples": 20,
        "higher_is_better": True,
        "train_length": 512,
        "source": Path("results_1.json"),
    }
    return [Cell(length=length, value=value, **(shared | changes)) for length, value in values.items()]
