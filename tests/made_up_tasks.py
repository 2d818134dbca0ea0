"""A user's folder of tasks: a length group and a plain task."""

from pathlib import Path

from mesa_lm.harness.task_manager import TaskManager

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


def save_tasks(folder: Path) -> Path:
    for name, text in {"utils.py": UTILS, "_length.yaml": TASK, "singing.yaml": GROUP, "plain.yaml": PLAIN}.items():
        (folder / name).write_text(text)
    return folder


def task_manager(folder: Path, **metadata: object) -> TaskManager:
    return TaskManager(include_path=folder, include_defaults=False, metadata=metadata)
