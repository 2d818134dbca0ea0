"""docs/adding_a_method.md, followed word for word in a copy of the repository, ends green."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text()
CREATE = re.compile(r"^Create `([^`]+)`:\n\n```\w+\n(.*?)```", re.DOTALL | re.MULTILINE)
INSERT = re.compile(r"In `([^`]+)`, insert above `([^`]+)`[^`]*?:\n\n```\w+\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^    python -m (.+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository in which the page was followed, its commands aside."""
    folder = tmp_path_factory.mktemp("clone") / "mesa-lm"
    ignored = shutil.ignore_patterns(".*", "results", "dist", "__pycache__", "wandb")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)
    for path, text in CREATE.findall(PAGE):
        assert not (folder / path).exists()
        (folder / path).write_text(text)
    for path, line, text in INSERT.findall(PAGE):
        content = (folder / path).read_text()
        assert content.count(f"\n{line}") == 1, f"{path} has no single place above {line!r}"
        (folder / path).write_text(content.replace(f"\n{line}", f"\n{text}{line}"))
    return folder


def test_the_page_adds_a_method_in_about_30_lines():
    ((path, text),) = CREATE.findall(PAGE)
    code = [line for line in text.splitlines() if line and not line.strip().startswith(('"""', "Source:"))]
    assert path == "mesa_lm/methods/sliding_window.py"
    assert len(code) <= 30


def test_one_file_and_one_row_of_the_package_are_touched():
    touched = {path for path, *_ in [*CREATE.findall(PAGE), *INSERT.findall(PAGE)] if path.startswith("mesa_lm")}
    assert touched == {"mesa_lm/methods/sliding_window.py", "mesa_lm/methods/registry.py"}


def test_following_the_page_ends_green(copy):
    commands = COMMAND.findall(PAGE)
    assert len(commands) == 3
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command.split()], cwd=copy, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "sliding_window" in (copy / "docs" / "families.md").read_text()
