"""passkey_grid, longeval_lines and govreport_long: what is asked, at which length, and how it is scored."""

import json
import random
from collections import Counter

import pytest
from lm_eval import simple_evaluate

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.tasks.govreport_long import reports as govreport
from mesa_lm.tasks.longeval_lines import records as lines
from mesa_lm.tasks.passkey_grid import grid

MODEL = {"pretrained": str(MODEL_PATH)}
COUNT = task_encoding(MODEL).count
GRID = {"num_samples": 3, "depths": 5, "prompt": "plain", "seed": 0, **MODEL}
LINES = {"num_samples": 7, "prompt": "plain", "seed": 0, **MODEL}


def test_the_grid_has_as_many_questions_at_every_depth_and_they_take_turns():
    docs = list(grid.grid_dataset(length=701, **GRID)["test"])
    assert Counter(doc["asked_depth"] for doc in docs) == dict.fromkeys((0.0, 0.25, 0.5, 0.75, 1.0), 3)
    assert [doc["asked_depth"] for doc in docs[:5]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert all(abs(doc["depth"] - doc["asked_depth"]) < 0.1 and doc["tokens"] <= 701 for doc in docs)


@pytest.mark.parametrize("depths", [[1 / 3, 0.95], 3, 11])
def test_a_grid_of_any_depths_warns_of_nothing_and_knows_its_direction(depths, caplog):
    metadata = {"num_samples": 1, "depths": depths, "lengths": [400]}
    results = simple_evaluate("mesa-hf", {}, ["passkey_grid"], metadata=metadata, bootstrap_iters=10)
    names = {name.removesuffix(",none") for name in results["results"]["passkey_grid_400"] if "acc" in name}
    measured = {name for name in names if "stderr" not in name}
    assert len(measured) == 1 + (depths if isinstance(depths, int) else len(depths))
    assert results["higher_is_better"]["passkey_grid_400"] == dict.fromkeys(measured, True)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_grid_answer_counts_for_its_own_depth():
    assert grid.score({"key": 71, "asked_depth": 1 / 3}, ["71."]) == {"acc": 1.0, "acc_depth_33.3": 1.0}


@pytest.mark.parametrize("option", [{"depths": []}, {"depths": [1.1]}, {"depths": None}, {"num_samples": 0}])
def test_wrong_grid_options_are_refused(option):
    with pytest.raises(UsageError, match="^passkey_grid: "):
        grid.check_options(option)


@pytest.mark.parametrize("length", [503, 4099])
def test_a_record_of_lines_has_as_many_as_fit_and_the_value_asked_for(length):
    for i, doc in enumerate(lines.lines_dataset(length=length, **LINES)["test"]):
        assert doc["tokens"] == COUNT(doc["prompt"]) <= length
        assert f"line {doc['name']}: REGISTER_CONTENT is <{doc['value']}>\n" in doc["prompt"]
        assert doc["prompt"].endswith(f"in line {doc['name']}? I need the number.")
        record = lines.draw_record(random.Random(f"0 {length} {i}"), "")
        assert len(set(record.names)) == len(record.names)
        assert COUNT(record.text(doc["lines"] + 1)) > length


def test_lines_are_scored_by_the_last_and_by_the_first_number():
    assert lines.score({"value": 42}, ["It is <42>, not 7"]) == {"acc": 0.0, "first_number": 1.0}
    assert lines.score({"value": 42}, ["line 7 has 42"]) == {"acc": 1.0, "first_number": 0.0}
    assert lines.score({"value": 42}, ["none"]) == {"acc": 0.0, "first_number": 0.0}


@pytest.mark.parametrize(("length", "reason"), [(50, "too short"), (10_000_000, "takes more than")])
def test_impossible_lengths_of_lines_are_refused(length, reason):
    with pytest.raises(UsageError, match=reason):
        lines.lines_dataset(length=length, **LINES)


@pytest.fixture
def reports(tmp_path):
    rows = [{"report": "The agency spent money. " * n, "summary": f"Spent {n}."} for n in (10, 40, 43, 90)]
    path = tmp_path / "reports.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_reports_are_binned_by_the_tokens_of_their_prompt(reports):
    middle = COUNT(govreport.PROMPT.format(report="The agency spent money. " * 43))
    options = {"data": str(reports), "split": "test", "bin_width": middle // 3, **MODEL}
    docs = list(govreport.reports_dataset(length=middle, num_samples=2, **options)["test"])
    assert [doc["summary"] for doc in docs] == ["Spent 40.", "Spent 43."]
    with pytest.raises(UsageError, match="3 reports asked for, 2 of the 4"):
        govreport.reports_dataset(length=middle, num_samples=3, **options)


def test_data_that_cannot_be_read_are_refused(tmp_path):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text": "x"}')
    for data, reason in ((str(wrong), "needs the columns report and summary"), (str(tmp_path / "no"), "cannot load")):
        with pytest.raises(UsageError, match=reason):
            govreport.reports_dataset(length=100, num_samples=1, data=data, split="test", bin_width=10, **MODEL)


def test_a_perfect_summary_scores_one():
    found = govreport.score({"summary": "the report says much"}, ["the report says much"])
    assert found == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0, "bleu": ("the report says much",) * 2}


def test_lm_eval_runs_all_three(reports):
    metadata = {"num_samples": 1, "depths": 2, "data": str(reports), "bin_width": 500}
    names = ["passkey_grid_600", "longeval_lines_600", "govreport_long_600"]
    results = simple_evaluate("mesa-hf", tasks=names, metadata=metadata, bootstrap_iters=0)["results"]
    assert {"acc,none", "acc_depth_0,none", "acc_depth_100,none"} <= results["passkey_grid_600"].keys()
    assert {"acc,none", "first_number,none"} <= results["longeval_lines_600"].keys()
    assert {"rouge1,none", "rouge2,none", "rougeL,none", "bleu,none"} <= results["govreport_long_600"].keys()
