"""The sweep files that ship, and the simulation that measures the driver."""

from pathlib import Path

import pytest

from mesa_lm.cli import pipelines_module
from mesa_lm.errors import UsageError

pytest.importorskip("ray")
config = pipelines_module("config")


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
    found = pipelines_module("simulate").simulate(shards=31, workers=2, folder=tmp_path / "out")
    assert found["shards"] == 31
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 31


def test_a_model_that_is_trained_again_in_its_folder_is_another_one(tmp_path):
    plan = pipelines_module("plan")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"first")
    model = config.Model(pretrained=str(tmp_path))
    before = plan.weights(model)
    assert before == plan.weights(model)
    file.write_bytes(b"other")
    assert plan.weights(model) != before
    assert plan.weights(config.Model(pretrained="some/model")) == []


def test_a_shard_has_the_documents_of_its_entry(tmp_path):
    plan = pipelines_module("plan")
    entry = {"task": "long_ppl", "metadata": {"num_samples": 2}}
    sweep = config.Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=[entry, "long_ppl_512"])
    whole, alone = (plan.load_leaves(sweep, sweep.models[0], task)["long_ppl_512"] for task in sweep.tasks)
    one = plan.task_manager(sweep, sweep.models[0], sweep.tasks[0]).load(["long_ppl_512"])["tasks"]["long_ppl_512"]
    assert list(one.eval_docs) == list(whole.eval_docs)
    assert alone.config.metadata["lengths"] == [512]
    assert max(whole.config.metadata["lengths"]) > 512
