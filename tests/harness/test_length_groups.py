"""Length groups, made up ones, under lm-eval's task manager as we extend it."""

from pathlib import Path

import pytest
from made_up_tasks import TASK
from made_up_tasks import task_manager as manager

from mesa_lm.errors import UsageError
from mesa_lm.lengths import split_length_name


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
