"""Results files of lm-eval: which cells they give, which errors."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.reporting.results import Cell, interval, is_proportion, length_label, read, select

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


def report(lengths: dict[int, float], *, samples: int = 50, date: float = 1.0, **config: Any) -> dict[str, Any]:
    """Return what lm-eval writes for an accuracy of each length."""
    names = {length: f"lines_{length_label(length)}" for length in lengths}
    scores = {
        names[length]: {
            "name": names[length],
            "alias": names[length],
            "sample_len": samples,
            "acc,none": value,
            "acc_stderr,none": math.sqrt(value * (1 - value) / (samples - 1)),
        }
        for length, value in lengths.items()
    }
    return {
        "results": scores | {"lines": {"alias": "lines", "acc,none": 0.5, "acc_stderr,none": "N/A"}},
        "configs": {name: {"task": name, "dataset_kwargs": {"length": length}} for length, name in names.items()},
        "group_subtasks": {"lines": list(names.values())},
        "higher_is_better": {name: {"acc": True} for name in names.values()},
        "n-samples": {name: {"original": 100, "effective": samples} for name in names.values()},
        "config": {"model": "mesa-hf", "model_args": {}} | config,
        "date": date,
    }


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


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

    cells = read([tmp_path / "out"])

    assert [(cell.length, cell.metric) for cell in cells] == [(512, "acc"), (512, "nll"), (2048, "acc"), (2048, "nll")]
    accuracy, loss = cells[0], cells[1]
    assert (accuracy.model, accuracy.method, accuracy.task, accuracy.samples) == ("dummy", "origin", "lines", 6)
    assert accuracy.value == pytest.approx(5 / 6)
    assert (accuracy.higher_is_better, loss.higher_is_better) == (True, False)
    assert accuracy.train_length is None
    assert (is_proportion(accuracy), is_proportion(loss)) == (True, False)


@pytest.mark.parametrize(
    ("config", "model", "method"),
    [
        ({}, "demo", "mesa"),
        ({"model_args": {"pretrained": str(MODEL_PATH), "method": "origin"}}, "demo", "origin"),
        ({"model": "hf", "model_args": {"pretrained": "org/base"}}, "org/base", "origin"),
        ({"model_args": "pretrained=org/base,revision=step3,method=rerope"}, "org/base@step3", "rerope"),
        ({"model_args": {"pretrained": "org/base", "peft": "org/adapter"}}, "org/adapter", "mesa"),
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
    (cell,) = read([save(tmp_path / "results_1.json", report({1024: 0.5}, **config))])

    assert (cell.model, cell.method) == (model, method)
    assert cell.train_length == (509 if "mesa_lm" in config else None)


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

    (cell,) = read([save(tmp_path / "results_1.json", content)])

    assert (cell.length, cell.task) == (length, task)


def test_number_in_a_name_is_no_length(tmp_path: Path) -> None:
    content = report({}) | {"results": {"niah_single_1": {"acc,none": 1.0}}, "configs": {"niah_single_1": {}}}
    path = save(tmp_path / "results_1.json", content)

    with pytest.raises(UsageError, match="found only tasks that name no length"):
        read([path])


def test_newest_wins_per_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a" / "results_b.json", report({512: 0.2, 1024: 0.4}, date=7.0))
    save(tmp_path / "b" / "results_a.json", report({1024: 0.6, 2048: 0.8}, date=5.0))

    with caplog.at_level(logging.WARNING):
        cells = read([tmp_path])

    assert {cell.length: cell.value for cell in cells} == {512: 0.2, 1024: 0.4, 2048: 0.8}
    (message,) = caplog.messages
    assert message == f"{tmp_path}/a/results_b.json replaces the older {tmp_path}/b/results_a.json at 1k"


def test_a_file_given_twice_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "results_1.json", report({512: 0.2}))

    assert len(read([tmp_path, path])) == 1
    assert not caplog.messages


def test_values_without_a_number_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = report({512: 0.2, 1024: 0.4})
    content["results"]["lines_1k"]["acc,none"] = math.nan
    content["results"]["lines_512"]["f1,strict"] = 0.3

    cells = read([save(tmp_path / "results_1.json", content)])

    assert [(cell.length, cell.metric, cell.stderr is None) for cell in cells] == [
        (512, "acc", False),
        (512, "f1,strict", True),
    ]
    assert "acc of lines_1k is nan and left out" in caplog.text


def test_truncated_samples_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read([save(tmp_path / "results_1.json", report({512: 0.2}, mesa_lm={"method": "mesa", "truncated_samples": 3}))])

    assert "max_length cut 3 samples" in caplog.text


def test_other_files_in_a_folder_are_skipped(tmp_path: Path) -> None:
    save(tmp_path / "results_1.json", report({512: 0.2}))
    save(tmp_path / "config.json", {"model_type": "llama"})
    save(tmp_path / "list.json", [1])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "broken.json").write_text("{")
    (tmp_path / "samples_lines_1.jsonl").write_text("{}\n{}\n")

    assert [cell.length for cell in read([tmp_path])] == [512]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        ("{", "not readable as JSON"),
        ("\x00", "not readable as JSON"),
        ("[]", "not a results file of lm-eval"),
        ('{"results": {}, "configs": []}', "not a results file of lm-eval"),
        ('{"results": {}, "configs": {}, "config": {}}', "no results per length"),
    ],
)
def test_unusable_file(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(UsageError, match=message) as caught:
        read([path])

    assert str(path) in str(caught.value)


def test_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found no results file"):
        read([tmp_path])


def cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {
        "model": "demo",
        "method": "mesa",
        "task": "lines",
        "name": "lines_1k",
        "length": 512,
        "metric": "acc",
        "value": 0.5,
        "stderr": None,
        "samples": 10,
        "higher_is_better": True,
        "train_length": None,
        "source": Path("results_1.json"),
    }
    return Cell(**(values | changes))


@pytest.mark.parametrize(("samples", "expected"), [(50, [17, 17, 16]), (3, [1, 1, 1]), (51, [17, 17, 17])])
def test_metrics_of_one_depth_are_means_of_its_samples_alone(tmp_path: Path, samples: int, expected: list[int]) -> None:
    content = report({512: 1.0}, samples=samples)
    for depth in ("100", "0", "33.3"):
        content["results"]["lines_512"] |= {f"acc_depth_{depth},none": 1.0, f"acc_depth_{depth}_stderr,none": 0.0}
    cells = {cell.metric: cell for cell in read([save(tmp_path / "results.json", content)])}
    assert [cells[f"acc_depth_{depth}"].samples for depth in ("0", "33.3", "100")] == expected
    assert cells["acc"].samples == samples
    low = interval(cells["acc_depth_0"]).low
    assert low == pytest.approx(1 / (1 + 1.959964**2 / expected[0]))


def test_select_one_metric_of_one_task() -> None:
    cells = [cell(), cell(metric="nll", task="text"), cell(task="keys"), cell(task="keys", metric="f1")]

    assert select(cells, "f1") == [cells[3]]
    assert select(cells, "acc", "keys") == [cells[2]]
    with pytest.raises(UsageError, match=r"several tasks have the metric 'acc'.*--task \(keys, lines\)"):
        select(cells, "acc")
    with pytest.raises(UsageError, match=r"unknown task 'line'; did you mean 'lines'\? \(allowed: keys, lines, text\)"):
        select(cells, "acc", "line")
    with pytest.raises(UsageError, match=r"unknown metric 'f2' \(allowed: acc, f1\)"):
        select(cells, "f2", "keys")


@pytest.mark.parametrize(
    ("value", "samples", "low", "high"),
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
    [
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_interval_of_a_proportion(value: float, samples: int, low: float, high: float) -> None:
    found = interval(cell(value=value, samples=samples, stderr=math.sqrt(value * (1 - value) / (samples - 1))))

    assert found == pytest.approx((low, high), abs=5e-5)


def test_interval_of_a_proportion_holds_the_value() -> None:
    for samples in range(1, 200):
        for successes in (0, samples // 3, samples):
            low, high = interval(cell(value=successes / samples, samples=samples)) or (1.0, 0.0)
            assert 0 <= low <= successes / samples <= high <= 1
            assert high - low > 0.01


@pytest.mark.parametrize(
    ("changes", "bounds"),
    [
        ({"value": 3.0, "stderr": 0.1}, (2.804, 3.196)),
        ({"value": 0.5, "stderr": 0.01}, (0.4804, 0.5196)),
        ({"value": 0.53, "stderr": None}, None),
        ({"value": 1.0, "stderr": 0.0, "higher_is_better": False}, (1.0, 1.0)),
        ({"value": 0.5, "stderr": None, "samples": None}, None),
    ],
)
def test_interval_of_other_metrics(changes: dict[str, Any], bounds: tuple[float, float] | None) -> None:
    found = interval(cell(**changes))

    assert found == (None if bounds is None else pytest.approx(bounds, abs=5e-5))


@pytest.mark.parametrize(("length", "label"), [(512, "512"), (1024, "1k"), (3000, "3000"), (65536, "64k")])
def test_length_label(length: int, label: str) -> None:
    assert length_label(length) == label
