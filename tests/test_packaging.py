"""What a wheel and an editable install put into site-packages, and that stock lm-eval finds it there."""

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import PathDistribution
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hatchling.build import build_editable, build_wheel

import mesa_lm

ROOT = Path(__file__).parents[1]
DEPENDENCIES = sysconfig.get_path("purelib")
LOOK = """
import lm_eval.evaluator, mesa_lm
from lm_eval.api.registry import get_model
manager = lm_eval.evaluator.TaskManager(include_defaults=False)
print(get_model("mesa-hf").__name__, mesa_lm.__file__)
print(manager.task_index["passkey_long"].yaml_path)
"""


def install(build: Callable[[str], str], folder: Path) -> Path:
    """Build the checkout and unpack the result, as an installer does; returns the site-packages folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        wheel = folder / build(str(folder))
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(build_wheel, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(build_editable, tmp_path_factory.mktemp("editable"))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def dist_info(site: Path) -> Path:
    return next(site.glob("mesa_lm-*.dist-info"))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def look(site: Path, cwd: Path) -> list[str]:
    """Ask stock lm-eval for model and tasks, from another folder and with nothing but `site` and the dependencies."""
    paths = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({DEPENDENCIES!r})"
    command = [sys.executable, "-I", "-S", "-c", paths + LOOK]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.splitlines()


def test_wheel_puts_only_the_package_and_the_hook_into_site_packages(wheel: Path) -> None:
    assert names(wheel) == {"mesa_lm", "mesa_lm.pth", dist_info(wheel).name}


def test_wheel_carries_all_of_package_tasks_and_pipelines(wheel: Path) -> None:
    sources = [path for name in ("mesa_lm", "tasks", "pipelines") for path in files(ROOT / name)]
    names = [path.relative_to(ROOT).as_posix() for path in sources]
    inside = {name if name.startswith("mesa_lm/") else f"mesa_lm/{name}" for name in names}
    inside = {name for name in inside if not name.startswith("mesa_lm/pipelines/development/")}
    found = {path.relative_to(wheel).as_posix() for path in files(wheel / "mesa_lm")}
    assert found == inside - {"mesa_lm/harness/startup.pth"}
    assert (wheel / "mesa_lm.pth").read_bytes() == (ROOT / "mesa_lm" / "harness" / "startup.pth").read_bytes()


def test_editable_install_adds_the_hook_and_points_at_the_checkout(editable: Path) -> None:
    assert names(editable) == {"_mesa_lm.pth", "mesa_lm.pth", dist_info(editable).name}
    path = Path((editable / "_mesa_lm.pth").read_text())
    assert [entry.name for entry in path.iterdir()] == ["mesa_lm"]  # nothing else of the checkout is importable
    assert (path / "mesa_lm").resolve() == ROOT / "mesa_lm"


@pytest.mark.parametrize("layout", ["wheel", "editable"])
def test_stock_lm_eval_finds_model_and_tasks(layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    site = request.getfixturevalue(layout)
    package, tasks = {
        "wheel": (site / "mesa_lm", site / "mesa_lm" / "tasks"),
        "editable": (ROOT / ".editable" / "mesa_lm", ROOT / "tasks"),
    }[layout]
    task = tasks / "passkey_long" / "passkey_long.yaml"
    assert look(site, tmp_path) == [f"MesaHFLM {package / '__init__.py'}", str(task)]


def test_entry_points(wheel: Path) -> None:
    found = {(entry.group, entry.name, entry.value) for entry in PathDistribution(dist_info(wheel)).entry_points}
    assert found == {
        ("console_scripts", "mesa-lm", "mesa_lm.cli.main:main"),
        ("lm_eval.models", "mesa-hf", "mesa_lm.harness.model:MesaHFLM"),
    }


def test_versions_agree() -> None:
    assert project()["version"] == mesa_lm.__version__


def test_every_direct_dependency_has_a_tested_version() -> None:
    wanted = chain(project()["dependencies"], *project()["optional-dependencies"].values())
    direct = {name.split(">=")[0].split("[")[0] for name in wanted} - {"mesa-lm"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in lines if not line.startswith("#")} == direct


@pytest.mark.slow
def test_the_command_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """The wheel in a new environment, from another folder; the dependencies are borrowed from this one."""
    venv.create(tmp_path / "venv", with_pip=True, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    built = next(wheel.parent.glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", built], check=True)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(tmp_path / "venv")}))
    (site / "borrowed.pth").write_text(DEPENDENCIES)
    command = [python, "-I", "-m", "lm_eval", "--model", "mesa-hf", "--tasks", "passkey_long", "--limit", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "passkey_long" in result.stdout
