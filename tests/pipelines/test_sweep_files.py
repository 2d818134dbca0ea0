"""The sweep files that ship, and the simulation that measures the driver."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_manager import TaskManager

pytest.importorskip("ray")
from mesa_lm.pipelines import config, plan, worker
from mesa_lm.pipelines.development import driver_simulation


@pytest.mark.parametrize("name", ["demo", "nightly", "paper"])
def test_the_sweep_files_that_ship_are_valid(name, monkeypatch):
    monkeypatch.setenv("MESA_OUT", "/some/where")
    sweep = config.load(Path(config.__file__).parent / f"{name}.yaml")
    assert sweep.name == name
    assert {"origin", "mesa"} <= {choice.method for choice in sweep.methods}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{methd: mesa, window: 5}", "methods.0.method is missing; did you mean 'method' where there is 'methd'?"),
        ("{window: 5}", "methods.0.method is missing"),
    ],
)
def test_a_method_without_its_name(entry, message, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{{name: a, out: {tmp_path}, methods: [{entry}], tasks: [passkey_long]}}")
    with pytest.raises(UsageError) as caught:
        config.load(path)
    assert str(caught.value).splitlines()[1:] == [f"  {message}"]


@pytest.mark.slow
def test_the_simulation_runs_every_shard(tmp_path):
    found = driver_simulation.simulate(shards=31, workers=2, folder=tmp_path / "out")
    assert found["shards"] == 31
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 31


def test_a_model_that_is_trained_again_in_its_folder_is_another_one(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"first")
    model = config.Model(pretrained=str(tmp_path))
    before = plan.weights(model)
    assert before == plan.weights(model)
    file.write_bytes(b"other")
    assert plan.weights(model) != before


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(plan, "hf_hub_download", partial(plan.hf_hub_download, cache_dir=tmp_path))
    model = config.Model(pretrained="some/model")
    assert plan.weights(model) == [("commit", "")]
    for commit in ("a" * 40, "b" * 40):  # the hub's cache, before and after somebody has pushed
        snapshot = tmp_path / "models--some--model" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (snapshot.parents[1] / "refs").mkdir(exist_ok=True)
        (snapshot.parents[1] / "refs" / "main").write_text(commit)
        plan._commit.cache_clear()
        assert plan.weights(model) == [("commit", commit)]
    plan._commit.cache_clear()


def test_a_task_that_asks_or_scores_otherwise_is_another_one(tmp_path):
    sweep = config.Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=["passkey_long_512"])
    leaf = plan.load_leaves(sweep, sweep.models[0], sweep.tasks[0])["passkey_long_512"]
    again = plan.load_leaves(sweep, sweep.models[0], sweep.tasks[0])["passkey_long_512"]
    before = plan._settings(leaf)
    assert plan._settings(again) == before
    again.config.generation_kwargs["max_gen_toks"] += 1
    assert plan._settings(again) != before


@pytest.mark.parametrize(
    ("text", "environment", "value"),
    [
        ("${A}/b", {"A": "x"}, "x/b"),
        ("${A:-y}/b", {"A": "x"}, "x/b"),
        ("${A:-y}/b", {}, "y/b"),
        ("${A:-y}/b", {"A": ""}, "y/b"),
        ("${A:-}b", {}, "b"),
        ("${A}b", {"A": ""}, "b"),
        ("$A and {A}", {}, "$A and {A}"),
    ],
)
def test_environment_variables(text, environment, value, monkeypatch):
    monkeypatch.delenv("A", raising=False)
    for name, given in environment.items():
        monkeypatch.setenv(name, given)
    assert config._substituted({"a": [text, 1]}) == {"a": [value, 1]}


@pytest.mark.parametrize(
    ("text", "message"), [("${A}", "variable A is not set"), ("${A-b}", "written"), ("${A", "written")]
)
def test_wrong_environment_variables(text, message, monkeypatch):
    monkeypatch.delenv("A", raising=False)
    with pytest.raises(UsageError, match=message):
        config._substituted(text)


def test_a_shard_has_the_documents_of_its_entry(tmp_path):
    entry = {"task": "long_ppl", "metadata": {"num_samples": 2}}
    sweep = config.Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=[entry, "long_ppl_512"])
    whole, alone = (plan.load_leaves(sweep, sweep.models[0], task)["long_ppl_512"] for task in sweep.tasks)
    one = plan.task_manager(sweep, sweep.models[0], sweep.tasks[0]).load(["long_ppl_512"])["tasks"]["long_ppl_512"]
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
        return plan.LoadedTasks("drawn", 0, include_path=tmp_path, include_defaults=False)

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
    digests = {plan.documents_digest(leaf, 0, 2) for leaf in (whole["tasks"]["drawn_b"], alone["tasks"]["drawn_b"])}
    assert len(digests) == 1 and plan.documents_digest(whole["tasks"]["drawn_a"], 0, 2) not in digests


def test_a_worker_refuses_documents_that_were_not_planned(tmp_path):
    task = {"task": "passkey_long_80", "metadata": {"num_samples": 2}}
    sweep = config.Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=[task])
    (shard,) = plan.plan(sweep)
    report = worker.Worker(sweep, 0).run(replace(shard, documents="others"))
    assert (report["status"], report["final"]) == ("failed", True)
    assert "passkey_long_80 has other documents here than where the sweep was planned" in report["error"]


def test_a_folder_of_tasks_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{{name: a, out: {tmp_path}, methods: [mesa], tasks: [mine], include_path: {tmp_path}/none}}")
    with pytest.raises(UsageError, match="include_path: there is no folder '.*/none'"):
        plan.plan(config.load(path))
