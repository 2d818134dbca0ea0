"""Which code an answer comes from: digests of the sources that determine it, and the commit that they are of."""

import ast
import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]
# What these hold reads answers, or asks for them; the tasks count one by one, see `task_digest`.
WITHOUT_EFFECT = ("cli", "pipelines", "reporting", "studies", "tasks")
YAML_SUFFIXES = (".yaml", ".yml")
GIT_TIMEOUT_S = 10


class Commit(NamedTuple):
    """Where a package's sources stand in their history.

    Attributes:
        commit: The commit's full hash; None where the sources are not those of a repository.
        dirty: Whether tracked files of the repository were changed since; None where that is unknown.
    """

    commit: str | None
    dirty: bool | None


def files_digest(paths: Iterable[Path]) -> str:
    """Return a digest of the names and contents of files."""
    digest = sha256()
    for path in sorted(set(paths)):
        digest.update(f"{path.name}\0{sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def package_digest() -> str:
    """Return a digest of this package's sources that determine an answer, as they are on disk now."""
    folders = (path for path in PACKAGE.iterdir() if path.is_dir() and path.name not in WITHOUT_EFFECT)
    return files_digest([*PACKAGE.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))])


def task_digest(yaml: Path) -> str:
    """Return a digest of the sources of a task: its folder, and what its files include or import from other tasks.

    Args:
        yaml: The file that describes the task.
    """
    found: set[Path] = set()
    waiting = [yaml, *(path for path in yaml.parent.iterdir() if path.suffix in (*YAML_SUFFIXES, ".py"))]
    while waiting:
        path = waiting.pop().resolve()
        if path not in found and path.is_file():
            found.add(path)
            waiting += _imported(path) if path.suffix == ".py" else _included(path)
    return files_digest(found)


def _included(yaml: Path) -> Iterator[Path]:
    """Yield the files that a task's YAML includes, and those of the functions that it names."""
    text = yaml.read_text(encoding="utf-8", errors="replace")
    for listed in re.findall(r"^include:(.*(?:\n[ \t]*-.*)*)", text, flags=re.MULTILINE):
        for name in re.findall(r"[^\s,\[\]'\"]+", listed.replace("- ", " ")):
            yield yaml.parent / name
    for function in re.findall(r"!function\s+['\"]?([\w.]+)", text):
        module = function.rpartition(".")[0]
        beside = yaml.parent / f"{module.replace('.', '/')}.py"
        yield beside if beside.is_file() else _module_file(module)


def _imported(source: Path) -> Iterator[Path]:
    """Yield the files of other tasks, and those beside it, that a Python file imports."""
    try:
        nodes = list(ast.walk(ast.parse(source.read_bytes())))
    except SyntaxError:
        return  # whoever imports it says so
    for node in nodes:
        names: list[str] = []
        folder = source.parent
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = source.parents[max(0, node.level - 1)]
            names = [node.module or "", *(f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names)]
        for name in filter(None, names):
            if name.startswith(("mesa_lm.tasks.", "lm_eval.tasks.")):
                yield _module_file(name)
            else:
                yield folder / f"{name.replace('.', '/')}.py"


def _module_file(module: str) -> Path:
    """Return the file of a module, which need not be there; a module of a task is not imported to find it."""
    package, _, rest = module.partition(".tasks.")
    try:
        spec = find_spec(package if rest else module)
    except (ImportError, ValueError):
        spec = None
    origin = Path((spec and spec.origin) or module)
    return origin.parent / "tasks" / f"{rest.replace('.', '/')}.py" if rest else origin


@cache
def package_commit() -> Commit:
    """Return the commit of this package's sources: of their repository, or that pip installed them from."""
    # A repository around an installed package does not hold it.
    if _git("ls-files", "--error-unmatch", "errors.py") is not None:
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
        return Commit(commit or None, None if changes is None else bool(changes))
    try:
        origin = json.loads(distribution("mesa-lm").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    commit = origin.get("vcs_info", {}).get("commit_id")
    return Commit(commit, False if commit else None)


def _git(*arguments: str) -> str | None:
    """Return what git says of the package's folder, None where it fails or is not there."""
    try:
        said = subprocess.run(
            ["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()
