"""Imports point down, inside functions, by string and from YAML too; nothing imports in a circle; names are unique."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
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
# By convention a task's scoring and a program's start have one name; a command's function has that of its command.
SHARED_NAMES = ("main", "score")
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
            face, _, public = target.rpartition(".")
            if face == "mesa_lm" and public in mesa_lm.__all__:
                target = getattr(mesa_lm, public).__module__  # whoever imports it from the package gets its module
            while target and target not in modules():
                target = target.rpartition(".")[0]
            found |= {target} - {"", name}
    return frozenset(found)


def package(name: str) -> str:
    return [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("name", sorted(set(modules()) - {"mesa_lm", HOOK}))
def test_imports_point_down(name):
    own = package(name)
    assert own in LAYERS, f"{own} belongs to no layer"
    for other in imported(name) - {"mesa_lm"}:
        assert LAYERS.index(package(other)) <= LAYERS.index(own), f"{name} imports {other}"


def test_nothing_but_commands_imports_the_face_of_the_package():
    """It imports what lies below, so that whoever imports it from there closes a circle."""
    for name, path in modules().items():
        if package(name) in ("cli", "__init__"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                faces = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert "mesa_lm" not in faces, f"{name}, line {node.lineno}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_are_absolute_and_named_as_in_a_wheel(name):
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: a relative import"
        for target in targets(node):
            assert target.split(".")[0] not in ("tasks", "pipelines", "tests"), f"{name} imports {target}"


def test_what_is_imported_by_a_computed_name_is_none_of_ours():
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                # The face of the package names its modules two lines above.
                assert name == "mesa_lm" or isinstance(node.args[0], ast.Constant), f"{name}, line {node.lineno}"


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*/*.yaml")), ids=lambda path: path.name)
def test_functions_of_a_task_are_its_own(path):
    for named in re.findall(r"!function (\S+)", path.read_text()):
        module, _, function = named.rpartition(".")
        assert module.startswith(f"mesa_lm.tasks.{path.parent.name}."), named
        assert callable(getattr(importlib.import_module(module), function)), named


def test_nothing_imports_what_only_measures_or_trains():
    development = {name for name in modules() if name.startswith("mesa_lm.pipelines.development")}
    assert development
    for name in set(modules()) - development:
        assert not imported(name) & development, name


def test_only_commands_import_studies():
    for name in modules():
        if package(name) not in ("studies", "cli"):
            assert "studies" not in {package(other) for other in imported(name)}, name


def test_no_two_public_things_share_a_name():
    places: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and package(name) != "cli"
            ):
                places.setdefault(node.name, []).append(name)
    assert not {found: names for found, names in places.items() if len(names) > 1 and found not in SHARED_NAMES}


def test_no_module_imports_itself_by_way_of_others():
    below = {name: imported(name) - {"mesa_lm"} for name in modules()}
    below[HOOK] = below["mesa_lm"] = frozenset()
    TopologicalSorter(below).prepare()  # raises CycleError, which names them


def test_packages_stand_on_few_floors():
    below: dict[str, set[str]] = {name: set() for name in LAYERS}
    for name in set(modules()) - {"mesa_lm", HOOK}:
        below[package(name)] |= {package(other) for other in imported(name) - {"mesa_lm"}} - {package(name)}
    floors: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():
        floors[name] = 1 + max((floors[other] for other in below[name]), default=0)
    assert max(floors.values()) <= MOST_FLOORS, floors


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
