"""Imports point down: no module of the core imports one of a later layer, and nothing imports pipelines or tasks."""

import ast
from pathlib import Path

import pytest

import mesa_lm

PACKAGE = Path(mesa_lm.__file__).parent
# From the bottom to the top; modules of one layer may import one another.
LAYERS = (
    {"errors", "positions"},
    {"methods", "replacing"},
    {"families"},
    {"rotary", "engine"},
    {"alibi", "layers"},
    {"cache", "growing", "reuse", "bands"},
    {"prefill", "banded"},
    {"passes"},
    {"forward"},
    {"structure", "own_calls", "tables"},
    {"static_scaling", "remote"},
    {"patching"},
    {"demo", "model_args", "tokenizing", "task_support"},
    {"answers", "batching", "logits", "shared_context", "scoring", "harness", "discovery", "squad", "plugin"},
    {"method_list"},
    {"results", "plots", "panels"},
    {"samples"},
    {"compare"},
    {"leaderboard"},
    {"theory", "probe", "bench"},
    {"cli", "__main__"},
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    """First components of what a file imports from mesa_lm, and other top-level packages by their name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            names.add(parts[1] if parts[0] == "mesa_lm" and len(parts) > 1 else parts[0])
        elif isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    relative = path.relative_to(PACKAGE)
    name = relative.parts[0].removesuffix(".py")
    if name == "__init__":
        return
    assert name in RANKS, f"{name} belongs to no layer"
    for other in imported(path) & RANKS.keys():
        assert RANKS[other] <= RANKS[name], f"{name} imports {other}"
    assert not imported(path) & {"pipelines", "tasks"}


def test_public_names_are_sorted_and_exist():
    assert mesa_lm.__all__ == sorted(mesa_lm.__all__)
    for name in mesa_lm.__all__:
        assert getattr(mesa_lm, name) is not None
