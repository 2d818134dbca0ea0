"""Imports point down, inside functions and by string too; nothing imports in a circle."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import mesa_lm

ROOT = Path(mesa_lm.__file__).resolve().parents[1]
# From the bottom to the top: a package imports what stands before it, and itself.
LAYERS = (
    "errors",
    "lengths",
    "demo",
    "methods",
    "attention",
    "models",
    "harness",
    "tasks",
    "reporting",
    "studies",
    "pipelines",
    "cli",
    "__main__",
)
HOOK = "mesa_lm.harness.plugin"  # names what it offers to lm-eval, and imports it when that is asked for
MOST_FLOORS = 9
MODULE_NAME = re.compile(r"mesa_lm(\.\w+)+(?=:\w+$|$)")


@cache
def modules() -> dict[str, Path]:
    """Every module by its name, which is the same in a checkout and in a wheel."""
    found = {}
    for folder in ("mesa_lm", "tasks", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT)
            if place.parts[:2] in (("mesa_lm", "tasks"), ("mesa_lm", "pipelines")):
                continue  # links to the other two
            parts = place.with_suffix("").parts
            name = ".".join(parts if folder == "mesa_lm" else ("mesa_lm", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def targets(node: ast.AST) -> Iterator[str]:
    """What a node may import."""
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names)
        case ast.ImportFrom(module=module) if module:
            yield from (f"{module}.{alias.name}" for alias in node.names)
        case ast.Constant(value=str() as text) if found := MODULE_NAME.match(text):
            yield found.group()


@cache
def imported(name: str) -> frozenset[str]:
    """The modules of the project that a module imports, anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        for target in targets(node):
            while target and target not in modules():
                target = target.rpartition(".")[0]
            found |= {target} - {"", name}
    # Whoever imports the package for a name of its face gets the module behind it.
    return frozenset(found)


def package(name: str) -> str:
    return [*name.split("."), "__init__"][1]


def height(name: str, below: dict[str, set[str]], seen: tuple[str, ...] = ()) -> int:
    """On which floor a package stands: above all that it imports."""
    assert name not in seen, f"{' -> '.join((*seen, name))} import in a circle"
    return 1 + max((height(other, below, (*seen, name)) for other in below[name]), default=0)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name):
    if name in ("mesa_lm", HOOK):
        return
    own = package(name)
    assert own in LAYERS, f"{own} belongs to no layer"
    for other in imported(name) - {"mesa_lm"}:
        assert LAYERS.index(package(other)) <= LAYERS.index(own), f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_are_absolute_and_named_as_in_a_wheel(name):
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import"
        for target in targets(node):
            assert target.split(".")[0] not in ("tasks", "pipelines", "tests"), f"{name} imports {target}"


def test_no_module_imports_itself_by_way_of_others():
    below = {name: set(imported(name)) - {"mesa_lm"} for name in modules()}
    below[HOOK] = below["mesa_lm"] = set()
    for name in below:
        height(name, below)


def test_packages_stand_on_few_floors():
    below: dict[str, set[str]] = {name: set() for name in LAYERS}
    for name in set(modules()) - {"mesa_lm", HOOK}:
        below[package(name)] |= {package(other) for other in imported(name) - {"mesa_lm"}} - {package(name)}
    assert max(height(name, below) for name in below) <= MOST_FLOORS


def test_the_package_has_few_entries():
    entries = [path for path in (ROOT / "mesa_lm").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 15, sorted(path.name for path in entries)


@pytest.mark.parametrize("name", sorted({name for name, path in modules().items() if path.name == "__init__.py"}))
def test_every_package_is_one_and_says_what_lives_there(name):
    found = importlib.import_module(name)
    assert found.__name__ == name
    assert found.__doc__


def test_public_names_are_sorted_and_exist():
    assert mesa_lm.__all__ == sorted(mesa_lm.__all__)
    for name in mesa_lm.__all__:
        assert getattr(mesa_lm, name) is not None
