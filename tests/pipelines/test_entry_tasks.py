"""The tasks of an entry have the documents of an `lm_eval` run of it."""

import random

import pytest

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_manager import TaskManager

pytest.importorskip("ray")
from mesa_lm.pipelines.entry_tasks import EntryTaskManager, entry_task_manager, load_leaves
from mesa_lm.pipelines.settings import Sweep, TaskEntry
from mesa_lm.pipelines.shard_keys import documents_digest


def test_a_shard_has_the_documents_of_its_entry(tmp_path):
    entry = {"task": "long_ppl", "metadata": {"num_samples": 2}}
    sweep = Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=[entry, "long_ppl_512"])
    whole, alone = (load_leaves(sweep, sweep.models[0], task)["long_ppl_512"] for task in sweep.tasks)
    one = entry_task_manager(sweep, sweep.models[0], sweep.tasks[0]).load(["long_ppl_512"])["tasks"]["long_ppl_512"]
    assert list(one.eval_docs) == list(whole.eval_docs)
    assert alone.config.metadata["lengths"] == [512]
    assert max(whole.config.metadata["lengths"]) > 512


RANDOM_UTILS = """
import random
from datasets import Dataset

def dataset(**arguments):
    return {"test": Dataset.from_list([{"text": str(random.random())} for _ in range(2)])}
"""
RANDOM_TASK = """
custom_dataset: !function utils.dataset
test_split: test
output_type: loglikelihood
doc_to_text: text
doc_to_target: text
metric_list: [{metric: acc}]
"""


def test_a_task_that_draws_its_documents_has_those_of_a_run_of_its_entry(tmp_path):
    (tmp_path / "utils.py").write_text(RANDOM_UTILS)
    for name in ("drawn_a", "drawn_b"):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{RANDOM_TASK}")
    (tmp_path / "drawn.yaml").write_text("group: drawn\ntask: [drawn_a, drawn_b]\n")

    def manager():
        random.random()  # whatever went before
        return EntryTaskManager(TaskEntry(task="drawn"), 0, include_path=tmp_path, include_defaults=False)

    random.seed(0)  # as lm_eval does
    stock = TaskManager(include_path=tmp_path, include_defaults=False).load(["drawn"])["tasks"]
    planned = manager()
    whole = planned.load(["drawn"])
    alone = manager().load(["drawn_b"])
    assert list(whole["groups"]) == ["drawn"] and alone["groups"] == {}
    expected = [list(stock[name].eval_docs) for name in ("drawn_a", "drawn_b")]
    assert [list(whole["tasks"][name].eval_docs) for name in ("drawn_a", "drawn_b")] == expected
    assert list(alone["tasks"]["drawn_b"].eval_docs) == expected[1]
    assert planned.load(["drawn_a"])["tasks"]["drawn_a"] is whole["tasks"]["drawn_a"]
    digests = {documents_digest(leaf, 0, 2) for leaf in (whole["tasks"]["drawn_b"], alone["tasks"]["drawn_b"])}
    assert len(digests) == 1 and documents_digest(whole["tasks"]["drawn_a"], 0, 2) not in digests


def test_an_unknown_task_is_refused_with_the_nearest(tmp_path):
    sweep = Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=["passkey_lnog"])
    with pytest.raises(UsageError, match="lm-eval knows no task 'passkey_lnog'; did you mean 'passkey_long'"):
        load_leaves(sweep, sweep.models[0], sweep.tasks[0])
