"""Documents in mapped files: the same rows, out of memory."""

import random
import tempfile

import pytest

pytest.importorskip("filelock")
from mesa_lm.demo import MODEL_PATH
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.pipelines.mapped_documents import Rows, map_documents

OPTIONS = {"lengths": [140], "num_samples": 3, "tokenizer": str(MODEL_PATH)}


@pytest.mark.parametrize("name", ["passkey_long", "long_ppl"])
def test_documents_are_the_same_and_not_in_memory(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (task,) = TaskManager(metadata=OPTIONS).load([f"{name}_140"])["tasks"].values()
    before, drawn = list(task.eval_docs), task.sampler.df
    assert not task.eval_docs.cache_files and drawn == before
    map_documents(task)
    assert list(task.eval_docs) == list(task.task_docs) == before
    assert all(table.cache_files for table in (task.eval_docs, task.task_docs))
    assert isinstance(task.sampler.df, Rows) and list(task.sampler.df) == drawn
    assert random.Random(3).sample(task.sampler.df, 2) == random.Random(3).sample(drawn, 2)
    mapped = task.eval_docs
    map_documents(task)
    assert task.eval_docs is mapped and not list(tmp_path.iterdir())


def test_where_there_is_no_room_documents_stay_in_memory(tmp_path, monkeypatch):
    (task,) = TaskManager(metadata=OPTIONS).load(["passkey_long_140"])["tasks"].values()
    before = list(task.eval_docs)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    map_documents(task)
    assert not task.eval_docs.cache_files and list(task.eval_docs) == before
