"""The start-up hook and mesa_lm.harness.plugin, in fresh interpreters: with the installed lm-eval and an imitation."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mesa_lm"
INSTALLED = sysconfig.get_path("purelib")  # where lm-eval is; used without the .pth files that lie there
LM_EVAL = {
    "__init__.py": "",
    "api/__init__.py": "",
    "api/registry.py": """
class Registry(dict):
    def register(self, name, target):
        assert name not in self
        self[name] = target
model_registry = Registry()
""",
    "models/__init__.py": "HERE = __file__\n",
    "tasks/__init__.py": "from lm_eval.tasks.manager import TaskManager\n",
    "tasks/manager.py": "class TaskManager: ...\n",
    "evaluator.py": "from lm_eval.tasks import TaskManager\n",
    "_cli/__init__.py": "",
    "_cli/harness.py": "",
}
INIT = "from mesa_lm.harness.plugin import install\ninstall()\n"
DISCOVERY = """
from lm_eval.tasks.manager import TaskManager as StockTaskManager
class TaskManager(StockTaskManager): ...
"""
EXTENSIONS = {
    "harness/evaluation.py": "def extend_evaluator(evaluator): evaluator.extended = True\n",
    "harness/lm_eval_command.py": "def extend_command(harness): harness.extended = True\n",
}
REGISTERED = (
    "import lm_eval.models; from lm_eval.api.registry import model_registry; print('mesa-hf' in model_registry)"
)
IN_USE = """
import lm_eval.evaluator, lm_eval.tasks, lm_eval.tasks.manager
for module in (lm_eval.evaluator, lm_eval.tasks, lm_eval.tasks.manager):
    print(module.TaskManager.__module__)
"""


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(params=["imitation", "installed"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A site-packages folder with the start-up hook and our plugin, and lm-eval in it or on the path."""
    if request.param == "imitation":
        write(tmp_path / "lm_eval", LM_EVAL)
    write(tmp_path / "mesa_lm", {"__init__.py": INIT, "harness/__init__.py": "", "harness/task_manager.py": DISCOVERY})
    write(tmp_path / "mesa_lm", EXTENSIONS)
    for name in ("errors.py", "harness/plugin.py"):
        shutil.copy(PACKAGE / name, tmp_path / "mesa_lm" / name)
    shutil.copy(PACKAGE / "harness" / "startup.pth", tmp_path / "mesa_lm.pth")
    return tmp_path


def start(site: Path, code: str, *, hook: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `code` in a bare interpreter that has `site` as its site-packages folder, or merely on its path."""
    add = f"import site, sys; site.addsitedir({str(site)!r})" if hook else f"import sys; sys.path.append({str(site)!r})"
    if not (site / "lm_eval").exists():
        add += f"; sys.path.append({INSTALLED!r})"
    command = [sys.executable, "-I", "-S", "-W", "error", "-c", f"{add}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def output(site: Path, code: str, *, hook: bool = True) -> str:
    """What `code` prints; it must succeed and leave stderr empty."""
    result = start(site, code, hook=hook)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


def test_start_is_silent_and_imports_nothing(site: Path) -> None:
    before = f"import sys, site, encodings.utf_8_sig; before = set(sys.modules); site.addsitedir({str(site)!r})"
    assert output(site, f"{before}; print(sorted(set(sys.modules) - before))", hook=False) == "[]"


def test_a_python_that_never_imports_lm_eval_never_imports_us(site: Path) -> None:
    assert output(site, "import json, sys; print('mesa_lm' in sys.modules)") == "False"


@pytest.mark.parametrize("site", ["imitation"], indirect=True)
def test_nothing_changes_where_lm_eval_is_absent(site: Path) -> None:
    shutil.rmtree(site / "lm_eval")
    (site / "lm_eval").touch()  # the installed one stays out of sight
    assert output(site, "try: import lm_eval\nexcept ModuleNotFoundError as error: print(error)") == (
        "No module named 'lm_eval'"
    )


def test_model_is_registered_lazily(site: Path) -> None:
    code = f"import sys; {REGISTERED}; print('mesa_lm.harness.model' in sys.modules)"
    assert output(site, code) == "True\nFalse"


@pytest.mark.parametrize("site", ["imitation"], indirect=True)
def test_model_is_registered_by_its_target(site: Path) -> None:
    assert output(site, f"{REGISTERED}; print(model_registry['mesa-hf'])") == "True\nmesa_lm.harness.model:MesaHFLM"


@pytest.mark.parametrize("site", ["imitation"], indirect=True)
def test_an_lm_eval_that_is_not_extended_gets_a_model_that_says_so(site: Path) -> None:
    write(site / "lm_eval-0.5.0.dist-info", {"METADATA": "Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.5.0\n"})
    assert output(site, f"import lm_eval.tasks, lm_eval.evaluator\n{IN_USE}").count("mesa_lm") == 0
    assert output(site, REGISTERED) == "True"
    refused = start(site, "from mesa_lm.harness.plugin import check_lm_eval; check_lm_eval()").stderr
    assert "mesa-lm extends lm-eval 0.4 from 0.4.13 on, found 0.5.0; pip install 'lm-eval<0.5'" in refused


def test_a_model_that_lm_eval_discovered_itself_stays(site: Path) -> None:
    # A second registration with another target is an error in both.
    discovered = "from lm_eval.api.registry import model_registry; model_registry.register('mesa-hf', target='other:A')"
    assert output(site, f"{discovered}; {REGISTERED}") == "True"


@pytest.mark.parametrize("first", ["lm_eval.tasks", "lm_eval.evaluator", "mesa_lm", "mesa_lm.harness.task_manager"])
def test_task_manager_is_ours_everywhere(site: Path, first: str) -> None:
    assert output(site, f"import {first}\n{IN_USE}") == "\n".join(["mesa_lm.harness.task_manager"] * 3)


@pytest.mark.parametrize("first", ["sys", "lm_eval.models, lm_eval.evaluator", "mesa_lm.harness.task_manager"])
def test_importing_mesa_lm_is_enough_without_the_hook(site: Path, first: str) -> None:
    code = f"import {first}, mesa_lm\nmesa_lm.install()\n{IN_USE}"
    ours = "\n".join(["mesa_lm.harness.task_manager"] * 3)
    assert output(site, f"{code}\n{REGISTERED}", hook=False) == f"{ours}\nTrue"


@pytest.mark.parametrize("module", ["lm_eval.evaluator", "lm_eval._cli.harness"])
@pytest.mark.parametrize("hook", [True, False])
def test_evaluation_and_command_are_extended(site: Path, module: str, hook: bool) -> None:
    first = "" if hook else "import mesa_lm; "
    assert output(site, f"{first}import {module}; print({module}.extended)", hook=hook) == "True"


def test_watched_modules_keep_their_loader(site: Path) -> None:
    code = """
import inspect, lm_eval.models, pathlib
text = pathlib.Path(lm_eval.models.__file__).read_text()
print(inspect.getsource(lm_eval.models) == text, type(lm_eval.models.__loader__))
"""
    assert output(site, code) == "True <class '_frozen_importlib_external.SourceFileLoader'>"


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ({}, "No module named 'mesa_lm'"),
        ({"__init__.py": "raise RuntimeError('broken')"}, "broken"),
        ({"__init__.py": "", "harness/plugin.py": "def"}, "invalid syntax"),
        ({"__init__.py": "", "harness/plugin.py": "install = None"}, "not callable"),
    ],
)
def test_a_broken_package_breaks_neither_python_nor_lm_eval(site: Path, broken: dict[str, str], fault: str) -> None:
    shutil.rmtree(site / "mesa_lm")
    write(site / "mesa_lm", broken)
    assert output(site, "pass") == ""
    result = start(site, "import lm_eval.models, lm_eval.evaluator; print(lm_eval.evaluator.TaskManager.__module__)")
    assert (result.returncode, result.stdout) == (0, "lm_eval.tasks.manager\n")
    assert result.stderr.startswith("mesa-lm is installed but could not be activated: ")
    assert fault in result.stderr
    assert result.stderr.count("\n") == 1


def test_broken_discovery_leaves_the_stock_task_manager_and_the_model(site: Path) -> None:
    write(site / "mesa_lm", {"harness/task_manager.py": "raise RuntimeError('broken discovery')"})
    result = start(site, f"{IN_USE}\n{REGISTERED}")
    assert result.stdout.splitlines() == ["lm_eval.tasks.manager"] * 3 + ["True"]
    assert result.stderr == ("mesa-lm is installed but could not be activated: RuntimeError('broken discovery')\n")


def test_missing_tasks_leave_the_stock_task_manager(site: Path) -> None:
    missing = (
        "from pathlib import Path\nfrom mesa_lm.errors import lost_link\nraise lost_link(Path('/a/mesa_lm/tasks'))\n"
    )
    write(site / "mesa_lm", {"harness/task_manager.py": missing})
    result = start(site, IN_USE)
    assert result.stdout.splitlines() == ["lm_eval.tasks.manager"] * 3
    (line,) = result.stderr.splitlines()
    assert "could not be activated" in line and "/a/mesa_lm/tasks must be a link" in line


def test_the_hook_is_one_guarded_line() -> None:
    lines = (PACKAGE / "harness" / "startup.pth").read_text().splitlines()
    assert [line.split("(")[0] for line in lines if not line.startswith("#")] == ["import sys; exec"]


def test_importing_the_real_package_activates_it_cheaply(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = [{str(PACKAGE.parent)!r}, {INSTALLED!r}]
import mesa_lm
print(any(type(finder).__module__ == "mesa_lm.harness.plugin" for finder in sys.meta_path))
print([name for name in ("torch", "transformers", "lm_eval") if name in sys.modules])
"""
    assert output(tmp_path, code, hook=False) == "True\n[]"
