"""What `make` offers, and that the modules exist which it and the documentation run."""

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", "")
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
PAGES = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))]


def test_make_alone_lists_the_targets_and_starts_nothing():
    # Under `make test` the variables of that make would have this one announce its folder.
    env = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    shown = subprocess.run(["make"], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    lines = [re.fullmatch(r"([a-z-]+) +(\S.*)", line) for line in shown.splitlines()]
    assert [line[1] for line in lines] == TARGETS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_modules_that_are_run_exist(path):
    for name in re.findall(r"python -m (mesa_lm[\w.]*|pipelines[\w.]*)", path.read_text()):
        assert name.startswith("mesa_lm") and find_spec(name), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_into_the_repository_lead_somewhere(path):
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target
