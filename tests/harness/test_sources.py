"""Which edits make the sources of an answer other ones, and which commit they are of."""

import json
import shutil
import subprocess

import pytest

from mesa_lm.harness import sources


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, without what is large."""
    copy = tmp_path / "copied" / "mesa_lm"
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.json")
    shutil.copytree(sources.PACKAGE, copy, symlinks=False, ignore=ignored)
    monkeypatch.setattr(sources, "PACKAGE", copy)
    sources.package_commit.cache_clear()
    yield copy
    sources.package_commit.cache_clear()


@pytest.mark.parametrize(
    ("edited", "counts"),
    [
        ("attention/call.py", True),
        ("methods/rerope.py", True),
        ("models/attach.py", True),
        ("harness/scoring.py", True),
        ("lengths.py", True),
        ("reporting/ranking.py", False),
        ("cli/sweep.py", False),
        ("pipelines/tracking.py", False),
        ("tasks/passkey_long/questions.py", False),
    ],
)
def test_an_edit_of_what_answers_is_another_package(package, edited, counts):
    before = sources.package_digest()
    assert before == sources.package_digest()
    with (package / edited).open("a") as file:
        file.write("\n# edited\n")
    assert (sources.package_digest() != before) == counts


@pytest.mark.parametrize(
    ("edited", "counts"),
    [
        ("passkey_grid/_length.yaml", True),
        ("passkey_grid/grid.py", True),
        ("passkey_long/questions.py", True),  # which the grid imports
        ("passkey_long/texts.py", True),  # which that imports
        ("passkey_grid/README.md", False),
        ("long_ppl/samples.py", False),
    ],
)
def test_a_task_is_its_folder_and_the_tasks_that_it_uses(package, edited, counts):
    yaml = package / "tasks" / "passkey_grid" / "_length.yaml"
    # As for an installed package: the modules of tasks are looked up where mesa_lm is found.
    path = package / "tasks" / edited
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package.parent)
        patch.setattr(sources, "find_spec", lambda name: type("Spec", (), {"origin": str(package / "__init__.py")}))
        before = sources.task_digest(yaml)
        with path.open("a") as file:
            file.write("\n# edited\n")
        assert (sources.task_digest(yaml) != before) == counts


def test_what_a_task_of_the_users_own_includes_counts(tmp_path):
    task, shared = tmp_path / "mine", tmp_path / "shared"
    task.mkdir(), shared.mkdir()
    (task / "mine.yaml").write_text("include: ../shared/_template\ntask: mine\ndoc_to_text: !function utils.text\n")
    (task / "utils.py").write_text("from words import join\n")
    (task / "words.py").write_text("def join(): ...\n")
    (shared / "_template").write_text("include:\n  - base.yaml\noutput_type: generate_until\n")
    (shared / "base.yaml").write_text("process_docs: !function metrics.clean\n")
    (shared / "metrics.py").write_text("def clean(): ...\n")
    seen = {sources.task_digest(task / "mine.yaml")}
    for file in ("utils.py", "words.py", "../shared/_template", "../shared/base.yaml", "../shared/metrics.py"):
        with (task / file).open("a") as opened:
            opened.write("\n# edited\n")
        seen.add(sources.task_digest(task / "mine.yaml"))
    assert len(seen) == 6
    (task / "notes.md").write_text("nothing")
    assert sources.task_digest(task / "mine.yaml") in seen


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_that_of_the_packages_own_repository(package, capfd):
    assert sources.package_commit() == (None, None)
    assert capfd.readouterr().err == ""  # git's "fatal: not a git repository" is nobody's concern
    root = package.parent
    git(root, "init")
    (root / "other").write_text("")
    git(root, "add", "other")
    git(root, "commit", "-m", "somebody else's")
    sources.package_commit.cache_clear()
    assert sources.package_commit() == (None, None)  # an environment inside of another project
    git(root, "add", ".")
    git(root, "commit", "-m", "ours")
    sources.package_commit.cache_clear()
    clean = sources.package_commit()
    assert len(clean.commit) == 40 and clean.dirty is False
    (package / "errors.py").write_text("")
    sources.package_commit.cache_clear()
    assert sources.package_commit() == (clean.commit, True)


def test_an_installation_from_a_repository_names_its_commit(package, monkeypatch):
    origin = json.dumps({"url": "https://example.org/mesa-lm", "vcs_info": {"vcs": "git", "commit_id": "a" * 40}})
    monkeypatch.setattr(sources, "distribution", lambda name: type("D", (), {"read_text": lambda self, file: origin})())
    assert sources.package_commit() == ("a" * 40, False)
