"""Shards, merged, are a single run of lm-eval: every metric, standard error, sample and field."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import byte_model
import pytest

pytest.importorskip("filelock")
from mesa_lm.demo import MODEL_PATH
from mesa_lm.pipelines.entry_tasks import forget_tasks
from mesa_lm.pipelines.merge import EntryResults, model_folder
from mesa_lm.pipelines.settings import ModelEntry
from mesa_lm.pipelines.shards import plan_shards
from mesa_lm.pipelines.store import Store
from mesa_lm.pipelines.sweep_file import load_sweep
from mesa_lm.pipelines.worker import Worker
from mesa_lm.reporting.costs import COSTS
from mesa_lm.reporting.ranking import rank
from mesa_lm.reporting.results import read

SWEEP = """
name: test
out: OUT
models: [{pretrained: MODEL}]
methods: [origin, {method: rerope, window: 40}]
tasks:
  - {task: passkey_long, metadata: {num_samples: 3}}
  - {task: long_ppl, metadata: {num_samples: 3}, limit: 2}
lengths: [140, 210]
shard_tokens: 300
"""
# As a worker has it: with another number of threads sums are added up in another order.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Where and when, which no two runs share; the single run is given a path to write to, and no seed.
OWN = {"date", "total_evaluation_time_seconds", "sweep", "pretty_env_info", "git_hash", "upper_git_hash"}


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """A sweep whose shards ran one by one in this process, and its results files by method and task."""
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.replace("OUT", str(folder / "out")).replace("MODEL", str(MODEL_PATH)))
    sweep = load_sweep(path)
    shards = plan_shards(sweep)
    assert len(shards) > 12  # every task is cut
    one = Worker(sweep, 0)
    kept = Store(sweep.out)
    for shard in shards:
        report = one.run(shard)
        assert report.status == "done", report
    results = {}
    for method in range(2):
        for task in range(2):
            own = [shard for shard in shards if (shard.method, shard.task) == (method, task)]
            whole = EntryResults(sweep, own, kept)
            for leaf in reversed(list(whole.shards)):  # in any order
                assert whole.add([leaf])
            results[method, task] = whole.path
    return results


def single(folder: Path, method: str, task: str, *options: str) -> Path:
    """The results file of a run of the demo model."""
    metadata = json.dumps({"num_samples": 3, "lengths": [140, 210]})
    return run_lm_eval(folder, task, f"pretrained={MODEL_PATH},{method}", metadata, *options)


def run_lm_eval(folder: Path, task: str, arguments: str, metadata: str, *options: str) -> Path:
    """The results file of the `lm_eval` command."""
    command = [sys.executable, "-m", "lm_eval", "--model", "mesa-hf", "--tasks", task, "--model_args", arguments]
    command += ["--metadata", metadata, "--output_path", str(folder), "--log_samples", *options]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | ONE_THREAD)
    (path,) = folder.rglob("results_*.json")
    return path


@pytest.mark.parametrize(
    ("method", "task", "arguments", "name", "options"),
    [
        pytest.param(0, 0, "method=origin", "passkey_long", (), marks=pytest.mark.slow),
        (1, 0, "method=rerope,window=40", "passkey_long", ()),
        pytest.param(1, 1, "method=rerope,window=40", "long_ppl", ("--limit", "2"), marks=pytest.mark.slow),
    ],
    ids=["origin", "rerope", "limited"],
)
def test_merged_shards_are_a_single_run(merged, tmp_path, method, task, arguments, name, options):
    assert_same(merged[method, task], single(tmp_path, arguments, name, *options))


def assert_same(ours: Path, theirs: Path) -> None:
    """Results files of two lengths are the same, field by field and sample by sample."""
    found, expected = (json.loads(path.read_text()) for path in (ours, theirs))
    assert set(found) - {"sweep"} == set(expected)
    for key in set(expected) - OWN:
        assert json.dumps(found[key], sort_keys=True) == json.dumps(expected[key], sort_keys=True), key
    samples, others = (sorted(path.parent.glob("samples_*.jsonl")) for path in (ours, theirs))
    assert len(samples) == len(others) == 2
    for left, right in zip(samples, others, strict=True):
        assert left.name.rsplit("_", 1)[0] == right.name.rsplit("_", 1)[0]
        assert [json.loads(line) for line in left.open()] == [json.loads(line) for line in right.open()]


def test_a_model_of_this_machine_is_filed_under_its_folders_name(merged, tmp_path):
    name = merged[0, 0].parent.name
    assert re.fullmatch(r"model-[0-9a-f]{8}", name)
    other = tmp_path / "model"
    other.mkdir()
    assert model_folder(ModelEntry(pretrained=str(other))) not in (name, "model")
    assert model_folder(ModelEntry(pretrained="org/model")) == "org__model"
    assert model_folder(ModelEntry()) == "demo"


def test_what_the_workers_measured_is_on_the_leaderboard(merged):
    folder = merged[0, 0].parents[3]  # the sweep's own: shards and plan are no results
    results = read([folder]).where(task="passkey_long")
    rows = results.table[results.table.metric.isin(COSTS)]
    assert set(rows.length) == {140, 210} and set(rows.metric) == {"sample_s", "peak_bytes"}
    assert (rows.value[rows.metric == "peak_bytes"] > 2**26).all()
    assert rows.value[rows.metric == "sample_s"].between(0, 60, inclusive="neither").all()
    for entry in rank(results):
        longest = rows[(rows.method == entry.method) & (rows.length == 210)]
        assert entry.costs == dict(zip(longest.metric, longest.value, strict=True))


CHOICES_UTILS = """
import random
from datasets import Dataset

def dataset(**arguments):
    def words(count):
        return " ".join(random.choice(["grass", "sky", "green", "blue", "sun", "and"]) for _ in range(count))

    return {"test": Dataset.from_list([
        {"text": words(700), "choices": [words(1), words(2), words(4)], "gold": i % 3} for i in range(4)
    ])}
"""
CHOICES_TASK = """
task: drawn_choices
custom_dataset: !function utils.dataset
test_split: test
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
CHOICES_SWEEP = """
name: test
out: OUT
include_path: TASKS
models: [{pretrained: MODEL}]
methods: [rerope]
tasks: [drawn_choices]
shard_tokens: 2000
"""


def test_choices_of_a_task_of_the_users_own_are_a_single_run(tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "utils.py").write_text(CHOICES_UTILS)
    (tasks / "choices.yaml").write_text(CHOICES_TASK)
    path = tmp_path / "sweep.yaml"
    places = {"OUT": tmp_path / "out", "TASKS": tasks, "MODEL": MODEL_PATH}
    text = CHOICES_SWEEP
    for name, place in places.items():
        text = text.replace(name, str(place))
    path.write_text(text)
    sweep = load_sweep(path)
    shards = plan_shards(sweep)
    assert len(shards) > 1
    for shard in shards:  # each in a process of its own, as far as random numbers go
        forget_tasks()
        assert Worker(sweep, 0).run(shard).status == "done"
    whole = EntryResults(sweep, shards, Store(sweep.out))
    assert whole.add(["drawn_choices"])
    ours = whole.path
    command = [sys.executable, "-m", "lm_eval", "--model", "mesa-hf", "--tasks", "drawn_choices", "--log_samples"]
    command += ["--include_path", str(tasks), "--output_path", str(tmp_path / "single")]
    command += ["--model_args", f"pretrained={MODEL_PATH},method=rerope"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | ONE_THREAD)
    (theirs,) = (tmp_path / "single").rglob("results_*.json")
    found, expected = (json.loads(file.read_text()) for file in (ours, theirs))
    for key in set(expected) - OWN:
        assert found[key] == expected[key], key
    samples, others = (next(file.parent.glob("samples_*.jsonl")).read_text() for file in (ours, theirs))
    assert [json.loads(line) for line in samples.splitlines()] == [json.loads(line) for line in others.splitlines()]


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
GENERATION = {"max_gen_toks": 9, "until": ["7"], "repetition_penalty": 1.2}
CHAT_SWEEP = """
name: test
out: OUT
models: [{pretrained: MODEL}]
methods: [mesa]
tasks:
  - task: passkey_long
    metadata: {num_samples: 4}
    gen_kwargs: GENERATION
    apply_chat_template: true
    system_instruction: Be brief.
  - {task: passkey_long, metadata: {num_samples: 4}, system_instruction: Be brief.}
lengths: [500, 600]
shard_tokens: 1200
workers: {count: 2}
"""


@pytest.fixture(scope="module")
def chatted(tmp_path_factory):
    """The results files of a sweep on Ray, by task entry, its model, and how many shards there were."""
    ray = pytest.importorskip("ray")
    from mesa_lm.pipelines.run import run_sweep

    folder = tmp_path_factory.mktemp("chatted")
    model = byte_model.save_model(folder / "bytes", chat_template=CHAT)
    path = folder / "sweep.yaml"
    places = {"OUT": str(folder / "out"), "MODEL": model, "GENERATION": json.dumps(GENERATION)}
    path.write_text(re.sub("OUT|MODEL|GENERATION", lambda match: places[match[0]], CHAT_SWEEP))
    assert not ray.is_initialized()
    outcome = run_sweep(load_sweep(path))
    assert not outcome.failed and len(outcome.results) == 2, outcome
    return outcome.results, model, outcome.done


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        (0, ("--apply_chat_template", "--system_instruction", "Be brief.", "--gen_kwargs", json.dumps(GENERATION))),
        pytest.param(1, ("--system_instruction", "Be brief."), marks=pytest.mark.slow),
    ],
    ids=["chat", "system"],
)
def test_generation_and_chat_settings_are_those_of_a_single_run(chatted, tmp_path, entry, options):
    results, model, shards = chatted
    metadata = json.dumps({"num_samples": 4, "lengths": [500, 600]})
    theirs = run_lm_eval(tmp_path, "passkey_long", f"pretrained={model},method=mesa", metadata, *options)
    assert shards == 8  # two of each length of each entry
    assert_same(results[entry], theirs)
