"""Results files of lm-eval: what is read from them, and which errors."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from made_results import report, save

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.reporting.lm_eval_files import Measurement, read_files

TASK = """
task: {name}
custom_dataset: !function questions.build
dataset_kwargs: {{length: {length}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
process_results: !function questions.score
generation_kwargs: {{until: ["."], max_gen_toks: 3}}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: nll, aggregation: mean, higher_is_better: false}}
"""
GROUP = """
group: lines
task: [lines_512, lines_2k]
aggregate_metric_list: [{metric: acc, aggregation: mean}]
"""
QUESTIONS = """
import datasets

def build(length, **metadata):
    rows = [{"question": f"{length} {row}", "answer": str(row)} for row in range(7)]
    return {"test": datasets.Dataset.from_list(rows)}

def score(doc, results):
    row = int(doc["answer"])
    return {"acc": float(row < 5), "nll": 3.0 + row / 10}
"""


def measured(*paths: Path) -> list[Measurement]:
    return [found for file in read_files(paths).files for found in file.measurements()]


def test_file_of_lm_eval(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "questions.py").write_text(QUESTIONS)
    (tasks / "lines.yaml").write_text(GROUP)
    for label, length in (("512", 512), ("2k", 2048)):
        (tasks / f"{label}.yaml").write_text(TASK.format(name=f"lines_{label}", length=length))
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    results = lm_eval.simple_evaluate(
        model="dummy",
        tasks=["lines"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        evaluation_tracker=tracker,
        bootstrap_iters=10,
        limit=6,
    )
    results.pop("samples")
    tracker.save_results_aggregated(results)

    found = {(row.length, row.metric): row for row in measured(tmp_path / "out")}

    assert set(found) == {(512, "acc"), (512, "nll"), (2048, "acc"), (2048, "nll")}
    accuracy, loss = found[512, "acc"], found[512, "nll"]
    assert (accuracy.model, accuracy.method, accuracy.task, accuracy.samples) == ("dummy", "origin", "lines", 6)
    assert accuracy.value == pytest.approx(5 / 6)
    assert (accuracy.higher_is_better, loss.higher_is_better) == (True, False)
    assert accuracy.train_length is None
    assert (accuracy.is_share, loss.is_share) == (True, False)


@pytest.mark.parametrize(
    ("config", "model", "method"),
    [
        ({}, "demo", "mesa"),
        ({"model_args": {"pretrained": str(MODEL_PATH), "method": "origin"}}, "demo", "origin"),
        ({"model": "hf", "model_args": {"pretrained": "org/base"}}, "org/base", "origin"),
        ({"model_args": "pretrained=org/base,revision=step3,method=rerope"}, "org/base@step3", "rerope"),
        ({"model_args": {"pretrained": "org/base", "peft": "org/adapter"}}, "org/adapter", "mesa"),
        ({"model_args": {"pretrained": "./my-model/"}}, "my-model", "mesa"),
        ({"model_args": {"pretrained": "../models/x"}}, "../models/x", "mesa"),
        (
            {
                "model_args": {"pretrained": "org/base", "window": 64, "dtype": "float32"},
                "mesa_lm": {"method": "rerope", "parameters": {"log_n": True, "window": 64}, "train_length": 509},
            },
            "org/base",
            "rerope (window=64)",
        ),
        (
            {"model_args": None, "mesa_lm": {"method": "mesa", "pretrained": "org/object", "train_length": 509}},
            "org/object",
            "mesa",
        ),
    ],
)
def test_model_and_method(tmp_path: Path, config: dict[str, Any], model: str, method: str) -> None:
    (found,) = measured(save(tmp_path / "results_1.json", report({1024: 0.5}, **config)))

    assert (found.model, found.method) == (model, method)
    assert found.train_length == (509 if "mesa_lm" in config else None)


@pytest.mark.parametrize(
    ("name", "config", "length", "task"),
    [
        ("lines_4k", {"dataset_kwargs": {"length": 4096}}, 4096, "lines"),
        ("lines_4096", {"dataset_kwargs": {"length": 4096}}, 4096, "lines"),
        ("lines_a", {"dataset_kwargs": {"length": 4096}}, 4096, "grouped"),
        ("lines_a", {"metadata": {"length": 17}}, 17, "grouped"),
        ("lines_3k", {}, 3072, "lines"),
        ("lines_3000", {"metadata": None}, 3000, "lines"),
    ],
)
def test_length_and_task(tmp_path: Path, name: str, config: dict[str, Any], length: int, task: str) -> None:
    content = report({}) | {
        "results": {name: {"acc,none": 1.0}},
        "configs": {name: config},
        "group_subtasks": {task: [name]},
    }

    (found,) = measured(save(tmp_path / "results_1.json", content))

    assert (found.length, found.task) == (length, task)


def test_number_in_a_name_is_no_length(tmp_path: Path) -> None:
    content = report({}) | {"results": {"niah_single_1": {"acc,none": 1.0}}, "configs": {"niah_single_1": {}}}

    assert measured(save(tmp_path / "results_1.json", content)) == []


def test_files_come_in_the_order_of_their_runs_and_each_once(tmp_path: Path) -> None:
    late = save(tmp_path / "a.json", report({512: 0.2}, date=7.0))
    early = save(tmp_path / "b" / "b.json", report({512: 0.2}, date=5.0))

    assert [file.path for file in read_files([tmp_path, late, tmp_path / "b"]).files] == [early, late]


def test_values_without_a_number_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = report({512: 0.2, 1024: 0.4}, stderr=0.1)
    content["results"]["keys_1k"]["acc,none"] = math.nan
    content["results"]["keys_512"]["f1,strict"] = 0.3

    found = measured(save(tmp_path / "results_1.json", content))

    assert [(row.length, row.metric, row.stderr) for row in found] == [(512, "acc", 0.1), (512, "f1,strict", None)]
    assert "acc of keys_1k is nan and left out" in caplog.text


def test_truncated_samples_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {"mesa_lm": {"method": "mesa", "truncated_samples": 3}}
    measured(save(tmp_path / "results_1.json", report({512: 0.2}, **config)))

    assert "max_length cut 3 samples" in caplog.text


@pytest.mark.parametrize(("samples", "expected"), [(50, [17, 17, 16]), (3, [1, 1, 1]), (51, [17, 17, 17])])
def test_metrics_of_one_depth_are_means_of_its_samples_alone(tmp_path: Path, samples: int, expected: list[int]) -> None:
    content = report({512: 1.0}, samples=samples)
    for depth in ("100", "0", "33.3"):
        content["results"]["keys_512"] |= {f"acc_depth_{depth},none": 1.0, f"acc_depth_{depth}_stderr,none": 0.0}
    found = {row.metric: row for row in measured(save(tmp_path / "results.json", content))}

    assert [found[f"acc_depth_{depth}"].samples for depth in ("0", "33.3", "100")] == expected
    assert found["acc"].samples == samples
    assert found["acc_depth_0"].interval == pytest.approx((1 / (1 + 1.959964**2 / expected[0]), 1))


def test_what_a_sweep_adds(tmp_path: Path) -> None:
    sweep = {"costs": {"keys_512": {"peak_bytes": 7}}, "out_of_memory": ["keys_16k", "keys_1024", "other_32k"]}
    (file,) = read_files([save(tmp_path / "results.json", report({512: 1.0}) | {"sweep": sweep})]).files

    costs = [(row.value, row.samples, row.higher_is_better) for row in file.measurements() if row.metric != "acc"]
    assert costs == [(7.0, None, False)]
    assert file.out_of_memory("keys") == {1024, 16384}


def test_other_files_in_a_folder_are_skipped(tmp_path: Path) -> None:
    save(tmp_path / "results_1.json", report({512: 0.2}))
    save(tmp_path / "config.json", {"model_type": "llama"})
    save(tmp_path / "list.json", [1])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "broken.json").write_text("{")
    (tmp_path / "samples_lines_1.jsonl").write_text("{}\n{}\n")

    assert [file.path.name for file in read_files([tmp_path]).files] == ["results_1.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        ("[]", "not a results file of lm-eval"),
        ('{"results": {}, "configs": []}', "not a results file of lm-eval"),
    ],
)
def test_what_is_no_results_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(UsageError, match=f"{path}: {message}"):
        read_files([path])


def changed(*keys: str, to: object) -> dict[str, Any]:
    """A results file in which one value is another one."""
    content = report({512: 0.5}, mesa_lm={"method": "mesa", "parameters": {}, "train_length": 512})
    part: Any = content
    for key in keys[:-1]:
        part = part.setdefault(key, {})
    part[keys[-1]] = to
    return content


DEEP: list[Any] = []
for _ in range(80):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("\x00", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON: nested too deeply"),
        (changed("config", "deep", to=DEEP), "the nesting must be at most 60 levels, found 'more'"),
        (changed("results", "keys_512", "acc,none", to=1.5), "acc of keys_512 must be 0 to 1, found 1.5"),
        (changed("results", "keys_512", "nll,none", to=-0.5), "nll of keys_512 must be at least 0, found -0.5"),
        (changed("results", "keys_512", "acc,none", to="0.9"), "acc of keys_512 must be a number, found '0.9'"),
        (changed("results", "keys_512", "acc,none", to=10**400), "acc of keys_512 must be a number, found 1000"),
        (changed("results", "keys_512", "acc_stderr,none", to=-0.1), "acc_stderr of keys_512 must be at least 0"),
        (changed("results", "keys_512", to=[1]), "results of keys_512 must be an object"),
        (changed("results", "a/b", to={}), "the name of a task must be 1 to 200 characters without a slash"),
        (changed("results", "keys_" + "9" * 18, to={}), "the length in the name of a task must be at most"),
        (changed("n-samples", "keys_512", "effective", to=-3), "the effective number of samples of keys_512 must"),
        (changed("n-samples", "keys_512", "effective", to=2.5), "the effective number of samples of keys_512 must"),
        (
            changed("config", "mesa_lm", "train_length", to="512"),
            "mesa_lm.train_length must be a whole number, at least",
        ),
        (changed("config", "mesa_lm", "train_length", to=0), "mesa_lm.train_length must be a whole number, at least 1"),
        (changed("config", "mesa_lm", "truncated_samples", to="3"), "mesa_lm.truncated_samples must be a whole number"),
        (changed("config", "model_args", to=7), "model_args must be an object or a text, found 7"),
        (changed("config", "model_args", to={"pretrained": "a\u001b[31m"}), "a name must be printable text"),
        (changed("config", "model_args", to={"pretrained": "\ud800"}), "a text must be of whole Unicode characters"),
        (changed("date", to="yesterday"), "date must be a number of seconds since 1970, found 'yesterday'"),
        (changed("date", to=1e300), "date must be a number of seconds since 1970"),
        (changed("higher_is_better", "keys_512", "acc", to="yes"), "higher_is_better of acc of keys_512 must be true"),
        (changed("group_subtasks", "keys", to="keys_512"), "group_subtasks of keys must be a list of names"),
        (changed("configs", "keys_512", "dataset_kwargs", to={"length": -5}), "length of keys_512 must be a whole"),
        (changed("sweep", to={"costs": {"keys_512": {"peak_bytes": "7"}}}), "peak_bytes of keys_512 must be a number"),
        (changed("sweep", to={"out_of_memory": [3]}), "sweep.out_of_memory must be a list of names"),
        (changed("git_hash", to={"a": 1}), "git_hash must be a text"),
        (changed("versions", to=[1.0]), "versions must be an object"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path: Path, content: object, message: str) -> None:
    whole = save(tmp_path / "whole.json", report({512: 0.2}))
    damaged = tmp_path / "damaged.json"
    damaged.write_text(content if isinstance(content, str) else json.dumps(content))

    found = read_files([tmp_path])

    assert [file.path for file in found.files] == [whole]
    (problem,) = found.problems
    assert problem.startswith(f"{damaged}: {message}")
    assert len(problem.splitlines()) == 1 and len(problem) < 400


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results_1.json")

    assert read_files([tmp_path]).problems == [f"{tmp_path}/results_1.json: not a regular file"]


@pytest.mark.parametrize("name", [".__my-model", "..__models__x", ".hidden"])
def test_a_folder_that_lm_eval_named_after_a_model_is_read(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name / "results_1.json", report({512: 0.2}) | {"model_name_sanitized": name})

    assert [file.path for file in read_files([tmp_path]).files] == [path]


def test_other_hidden_folders_are_not_read(tmp_path: Path) -> None:
    content = report({512: 0.2}) | {"model_name_sanitized": "model"}
    save(tmp_path / ".ipynb_checkpoints" / "results_1-checkpoint.json", content)
    save(tmp_path / ".0-0-0" / ".__model" / "results_1.json", content | {"model_name_sanitized": ".__model"})
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "broken.json").write_text("{")

    assert read_files([tmp_path]) == ([], [])


def test_a_damaged_file_in_such_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / ".__my-model").mkdir()
    (tmp_path / ".__my-model" / "results_1.json").write_text("{")

    assert len(read_files([tmp_path]).problems) == 1
