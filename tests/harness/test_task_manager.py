"""The task manager on this project's tasks, the user's and lm-eval's."""

import json
import logging
import random
from pathlib import Path

import pytest
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks.manager import TaskManager as StockTaskManager
from made_up_tasks import task_manager as manager

from mesa_lm.harness import task_index
from mesa_lm.harness.task_manager import TASKS_PATH, TaskManager


def test_our_tasks_are_known_without_lm_evals() -> None:
    tasks = TaskManager(include_defaults=False)
    assert (TASKS_PATH / "passkey_long" / "passkey_long.yaml").is_file()
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
    monkeypatch.setattr(task_index, "stock_index", lambda: calls.append(1) or {"sung": sung, "passkey_long": sung})
    tasks = TaskManager()
    assert tasks.match_tasks([asked]) == ([found] if found else [])
    assert len(calls) == read
    assert tasks.task_index["passkey_long"].kind is Kind.GROUP  # ours comes first
    assert "sung" in tasks.all_subtasks and "sung" not in tasks.all_groups and tasks.all_tags == []
    assert len(tasks.task_index) == len(tasks.all_tasks)
    assert len(calls) == 1


def test_our_folder_given_by_the_user_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        TaskManager(include_path=[str(TASKS_PATH)], include_defaults=False)
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


def test_listing_names_file_and_output_type(folder: Path) -> None:
    rows = manager(folder).list_all_tasks().splitlines()
    row = next(row for row in rows if row.startswith("|singing_1k"))
    assert str(folder / "_length.yaml") in row
    assert "loglikelihood" in row


def test_stock_names_load_as_before(folder: Path) -> None:
    stock = StockTaskManager(include_path=str(folder), include_defaults=False)
    ours = manager(folder)
    assert ours.load("plain")["tasks"]["plain"].dump_config() == stock.load("plain")["tasks"]["plain"].dump_config()
    with pytest.raises(KeyError):
        ours.load("nothing")


FUNCTION_TASK = """
task: named
custom_dataset: !function utils.documents
test_split: test
output_type: generate_until
doc_to_text: text
doc_to_target: text
fewshot_config: {sampler: default, process_docs: !function utils.keep}
metric_list: [{metric: exact_match}]
"""
FUNCTION_UTILS = """
from datasets import Dataset

def documents(**options):
    return {"test": Dataset.from_list([{"text": "a"}])}

def keep(documents):
    return documents
"""


def test_saved_configurations_print_no_address_of_a_function(tmp_path: Path) -> None:
    (tmp_path / "named.yaml").write_text(FUNCTION_TASK)
    (tmp_path / "utils.py").write_text(FUNCTION_UTILS)
    tasks = TaskManager(include_path=tmp_path, include_defaults=False)
    saved = tasks.load(["named"])["tasks"]["named"].dump_config()
    assert saved["fewshot_config"]["process_docs"] == "<function keep>"
    assert " at 0x" not in json.dumps(saved)
