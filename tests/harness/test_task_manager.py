"""The task manager on this project's tasks and on made-up length groups."""

import logging
import random
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks.manager import TaskManager as StockTaskManager

from mesa_lm.errors import UsageError
from mesa_lm.harness import task_manager as discovery
from mesa_lm.harness.task_manager import TaskManager, length_name, split_length_name, tasks_path

UTILS = """
from datasets import Dataset
from mesa_lm.errors import UsageError

def dataset(*, length, words=2, **model_args):
    return {"test": Dataset.from_list([{"text": "la " * words, "length": length}])}

def check(metadata):
    if "wrods" in metadata:
        raise UsageError("wrods")
"""
TASK = """
custom_dataset: !function utils.dataset
test_split: test
output_type: loglikelihood
doc_to_text: text
doc_to_target: text
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GROUP = """
group: singing
aggregate_metric_list: [{metric: acc}]
metadata:
  version: 3.0
  lengths: [1000, 1024, 131072, 7]
  length_task: _length.yaml
  check: !function utils.check
"""
PLAIN = TASK + "task: plain\ndataset_kwargs: {length: 1}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder of tasks with a length group and a plain task."""
    for name, text in {"utils.py": UTILS, "_length.yaml": TASK, "singing.yaml": GROUP, "plain.yaml": PLAIN}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def manager(folder: Path, **metadata: object) -> TaskManager:
    return TaskManager(include_path=folder, include_defaults=False, metadata=metadata)


@pytest.mark.parametrize(("length", "name"), [(1024, "a_b_1k"), (131072, "a_b_128k"), (1000, "a_b_1000"), (7, "a_b_7")])
def test_length_name_and_back(length: int, name: str) -> None:
    assert length_name("a_b", length) == name
    assert split_length_name(name) == ("a_b", length)


@pytest.mark.parametrize("name", ["a", "a_", "a_0", "a_k", "a_-5", "a_5K", "a_07", "a_1.5k", "5k"])
def test_names_without_a_length(name: str) -> None:
    assert split_length_name(name) == (name, 0)


def test_our_tasks_are_known_without_lm_evals() -> None:
    tasks = TaskManager(include_defaults=False)
    assert (tasks_path() / "passkey_long" / "passkey_long.yaml").is_file()
    assert "passkey_long" in tasks.all_groups
    assert "passkey_long_4k" in tasks.all_subtasks
    assert "hellaswag" not in tasks.all_tasks


@pytest.mark.parametrize(
    ("asked", "found", "read"),
    [
        ("passkey_long", "passkey_long", 0),
        ("passkey_long_3000", "passkey_long_3000", 0),
        ("sung", "sung", 1),
        ("su*", "sung", 1),
        ("passkey_lo?g", "passkey_long", 1),
        ("nothing", None, 1),
    ],
)
def test_lm_evals_tasks_are_read_when_they_are_needed(asked, found, read, monkeypatch) -> None:
    calls = []
    sung = Entry(name="sung", kind=Kind.TASK, yaml_path=None, cfg={"task": "sung"})
    monkeypatch.setattr(discovery, "_stock_index", lambda: calls.append(1) or {"sung": sung, "passkey_long": sung})
    tasks = TaskManager()
    assert tasks.match_tasks([asked]) == ([found] if found else [])
    assert len(calls) == read
    assert tasks.task_index["passkey_long"].kind is Kind.GROUP  # ours comes first
    assert "sung" in tasks.all_subtasks and "sung" not in tasks.all_groups and tasks.all_tags == []
    assert len(tasks.task_index) == len(tasks.all_tasks)
    assert len(calls) == 1


def test_our_folder_given_by_the_user_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        TaskManager(include_path=[str(tasks_path())], include_defaults=False)
    assert not caplog.records


def test_the_users_tasks_take_precedence(folder: Path) -> None:
    (folder / "singing.yaml").write_text("group: passkey_long\ntask: [plain]\n")
    tasks = manager(folder)
    assert tasks.include_path == folder
    assert tasks.load("passkey_long")["group_map"] == {"passkey_long": ["plain"]}


def test_imports_of_a_task_take_no_random_numbers_from_its_documents(folder: Path) -> None:
    text = (folder / "utils.py").read_text().replace('"la " * words', "str(random.random())")
    (folder / "utils.py").write_text(f"import random\nrandom.random()\n{text}")
    drawn = []
    for _ in range(2):  # the second time the module is there already
        random.seed(7)
        drawn.append(manager(folder).load("plain")["tasks"]["plain"].dataset["test"][0]["text"])
    random.seed(7)
    assert drawn == [str(random.random())] * 2


def test_group_runs_each_length_once_in_ascending_order(folder: Path) -> None:
    names = ["singing_7", "singing_1000", "singing_1k", "singing_128k"]
    loaded = manager(folder).load(["singing"])
    assert loaded["group_map"] == {"singing": names}
    assert list(loaded["tasks"]) == names
    assert sorted(loaded["tasks"]) == names  # as lm-eval's results table sorts them
    assert [task.dataset["test"][0]["length"] for task in loaded["tasks"].values()] == [7, 1000, 1024, 131072]


def test_metadata_changes_lengths_and_reaches_the_dataset(folder: Path) -> None:
    tasks = manager(folder, lengths=[4096, 5, 5], words=3).load("singing")["tasks"]
    assert list(tasks) == ["singing_5", "singing_4k"]
    assert tasks["singing_5"].dataset["test"][0]["text"] == "la la la "


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("singing", ["singing"]),
        ("singing*", ["singing"]),
        ("*", ["plain", "singing"]),
        ("singing_*", ["singing_7", "singing_1000", "singing_1k", "singing_128k"]),
        ("singing_1*", ["singing_1000", "singing_1k", "singing_128k"]),
        ("singing_1k", ["singing_1k"]),
        ("singing_1024", ["singing_1024"]),
        ("singing_123", ["singing_123"]),
        ("singing_0", []),
        ("plain_123", []),
        ("sing", []),
    ],
)
def test_match(folder: Path, asked: str, names: list[str]) -> None:
    found = manager(folder).match_tasks([asked])
    assert [name for name in found if split_length_name(name)[0] in ("singing", "plain")] == names


@pytest.mark.parametrize(("name", "length"), [("singing_1k", 1024), ("singing_1024", 1024), ("singing_123", 123)])
def test_any_length_loads_alone_under_the_name_asked_for(folder: Path, name: str, length: int) -> None:
    tasks = manager(folder, lengths=[11]).load(name)["tasks"]
    assert list(tasks) == [name]
    assert tasks[name].dataset["test"][0]["length"] == length
    assert tasks[name].config.metadata["config_source"] == str(folder / "_length.yaml")


@pytest.mark.parametrize(
    ("asked", "metadata", "lengths"),
    [
        (["singing_7"], {}, [7]),
        (["singing_1k", "plain", "singing_7"], {}, [7, 1024]),
        (["singing", "singing_5"], {}, [5, 7, 1000, 1024, 131072]),
        (["singing_7"], {"lengths": [11, 7]}, [11, 7]),
    ],
)
def test_documents_are_shared_by_the_lengths_that_are_asked_for(
    folder: Path, asked: list[str], metadata: dict[str, object], lengths: list[int]
) -> None:
    (folder / "_length.yaml").write_text(TASK + "metadata: {lengths: [1000, 1024, 131072, 7]}\n")
    found = manager(folder, **metadata).load(asked)["tasks"]
    assert found["singing_7"].config.metadata["lengths"] == lengths


def test_other_groups_can_hold_lengths(folder: Path) -> None:
    (folder / "other.yaml").write_text("group: other\ntask: [plain, singing_1k]\n")
    assert list(manager(folder).load("other")["tasks"]) == ["plain", "singing_1k"]


def test_listing_names_file_and_output_type(folder: Path) -> None:
    rows = manager(folder).list_all_tasks().splitlines()
    row = next(row for row in rows if row.startswith("|singing_1k"))
    assert str(folder / "_length.yaml") in row
    assert "loglikelihood" in row


@pytest.mark.parametrize("lengths", [5, "5", [], [0], [-5], [1.5], [True], ["5"], None, {"5": 5}])
@pytest.mark.parametrize("name", ["singing", "singing_1k", "singing_123"])
def test_wrong_lengths_are_refused_when_asked_for(folder: Path, lengths: object, name: str) -> None:
    tasks = manager(folder, lengths=lengths)
    assert tasks.match_tasks(["plain"]) == ["plain"]
    for ask in (tasks.match_tasks, tasks.load):
        with pytest.raises(UsageError, match="singing: lengths must be a list of whole numbers .*; found"):
            ask([name])


def test_the_tasks_own_check_runs_when_asked_for(folder: Path) -> None:
    tasks = manager(folder, wrods=1)
    assert list(tasks.load("plain")["tasks"]) == ["plain"]
    for name in ("singing", "singing_1k", "singing_9", "singing*"):
        with pytest.raises(UsageError, match="wrods"):
            tasks.match_tasks([name])


def test_stock_names_load_as_before(folder: Path) -> None:
    stock = StockTaskManager(include_path=str(folder), include_defaults=False)
    ours = manager(folder)
    assert ours.load("plain")["tasks"]["plain"].dump_config() == stock.load("plain")["tasks"]["plain"].dump_config()
    with pytest.raises(KeyError):
        ours.load("nothing")


FAIL = """
import sys
sys.argv[0] = {command!r}
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.errors import UsageError
TaskManager(include_defaults=False)
raise {error}
"""


@pytest.mark.parametrize(
    ("command", "error", "one_line"),
    [
        ("/venv/bin/lm_eval", "UsageError('bad')", True),
        ("/venv/bin/lm-eval", "UsageError('bad')", True),
        ("/site-packages/lm_eval/__main__.py", "UsageError('bad')", True),
        ("/venv/bin/lm_eval", "ValueError('bad')", False),
        ("/home/user/script.py", "UsageError('bad')", False),
    ],
)
def test_errors_end_the_command_in_one_line(command: str, error: str, one_line: bool) -> None:
    code = FAIL.format(command=command, error=error)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("error: bad\n" if one_line else "Error: bad\n")
    assert ("Traceback" in result.stderr) is not one_line
