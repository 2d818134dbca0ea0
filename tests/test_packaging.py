"""What a wheel and an editable install put into site-packages, and that stock lm-eval finds it there."""

import pickle
import shutil
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


def install(build: Callable[[str], str], folder: Path, checkout: Path = ROOT) -> Path:
    """Build the checkout and unpack the result, as an installer does; returns the site-packages folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
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


@pytest.fixture(scope="module")
def without_links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as git makes it where there are no symbolic links: they are files that say where they lead."""
    copy = tmp_path_factory.mktemp("checkout") / "mesa-lm"
    unwanted = shutil.ignore_patterns("__pycache__", ".*", "tests", "docs", "results", "dist", "wandb")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=unwanted)
    for link in (copy / "mesa_lm").iterdir():
        if link.is_symlink():
            target = str(link.readlink())
            link.unlink()
            link.write_text(target)
    return copy


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def dist_info(site: Path) -> Path:
    return next(site.glob("mesa_lm-*.dist-info"))


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run(site: Path, cwd: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in another folder, with nothing but a site-packages folder and the dependencies."""
    paths = f"import site, sys; site.addsitedir({str(site)!r}); sys.path.append({DEPENDENCIES!r})"
    command = [sys.executable, "-I", "-S", "-c", f"{paths}\n{code}"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


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
    found = run(site, tmp_path, LOOK)
    assert found.stdout.splitlines() == [f"MesaHFLM {package / '__init__.py'}", str(task)], found.stderr


@pytest.mark.parametrize("layout", ["wheel", "editable"])
@pytest.mark.parametrize("name", ["tasks", "pipelines", "tests", "docs"])
def test_no_foreign_name_is_importable(name: str, layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = run(request.getfixturevalue(layout), tmp_path, f"import {name}")
    assert f"No module named '{name}'" in found.stderr


def test_what_is_pickled_in_a_checkout_is_read_where_a_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from mesa_lm.pipelines.outcome import ShardReport
    from mesa_lm.pipelines.settings import Sweep
    from mesa_lm.pipelines.shards import Shard
    from mesa_lm.pipelines.worker import Worker
    from mesa_lm.tasks.passkey_long.questions import Question

    sweep = Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=["passkey_long"])
    numbers = dict.fromkeys(("model", "method", "task", "start", "stop", "cost"), 0)
    shard = Shard(**numbers, key="k", leaf="passkey_long_1k", length=1024, documents="", sources="")
    sent = (sweep, shard, Worker, ShardReport(status="done"), Question(71, 0.5))
    (tmp_path / "sent").write_bytes(pickle.dumps(sent))
    code = """
import pathlib, pickle
for received in pickle.loads(pathlib.Path("sent").read_bytes()):
    print(received if isinstance(received, type) else repr(received))
print(sys.modules["mesa_lm.pipelines.worker"].__file__)
"""
    found = run(wheel, tmp_path, code)
    worker = wheel / "mesa_lm" / "pipelines" / "worker.py"
    assert found.stdout.splitlines() == [*map(str, map(repr, sent)), str(worker)], found.stderr


def test_a_checkout_without_links_makes_the_same_wheel(without_links: Path, wheel: Path, tmp_path: Path) -> None:
    site = install(build_wheel, tmp_path, without_links)
    assert {path.relative_to(site) for path in files(site)} == {path.relative_to(wheel) for path in files(wheel)}


def test_a_checkout_without_links_says_what_is_missing(without_links: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "checkout.pth").write_text(str(without_links))
    found = run(site, tmp_path, "sys.argv[1:] = ['status', 'out']\nfrom mesa_lm.cli.main import main\nmain()")
    missing = (
        f"error: {without_links / 'mesa_lm' / 'pipelines'} must be a link to the folder pipelines of the repository"
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(missing) and found.stderr.count("\n") == 1

    manager = "import mesa_lm, lm_eval.tasks\nprint(lm_eval.tasks.TaskManager.__module__)"
    found = run(site, tmp_path, manager)
    assert (found.returncode, found.stdout) == (0, "lm_eval.tasks.manager\n")
    assert f"{without_links / 'mesa_lm' / 'tasks'} must be a link" in found.stderr
    assert found.stderr.count("\n") == 1


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
