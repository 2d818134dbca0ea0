"""The sweep files that ship: complete, each method fit for each model, each task known, shards as many as they say."""

import json
from functools import cache
from pathlib import Path

import pytest
import transformers
from command_line import run

from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.methods.train_length import train_length_of
from mesa_lm.models.support import check_supported

pytest.importorskip("ray")
from mesa_lm.pipelines import settings
from mesa_lm.pipelines.sweep_file import load_sweep

FOLDER = Path(settings.__file__).parent
FILES = sorted([*FOLDER.glob("*.yaml"), *FOLDER.glob("paper/*.yaml")])
PAPER = [path for path in FILES if path.parent.name == "paper"]
# The hub is out of reach: what the models' configs say of family and training length.
LLAMA, NEOX = transformers.LlamaConfig, transformers.GPTNeoXConfig
CONFIGS = {
    "demo": LLAMA(max_position_embeddings=512),
    "meta-llama/Llama-2-7b-hf": LLAMA(max_position_embeddings=4096),
    "meta-llama/Llama-2-7b-chat-hf": LLAMA(max_position_embeddings=4096),
    "lmsys/vicuna-13b-v1.3": LLAMA(max_position_embeddings=2048),
    "lmsys/vicuna-13b-v1.5": LLAMA(max_position_embeddings=4096),
    "openlm-research/open_llama_3b": LLAMA(max_position_embeddings=2048),
    "EleutherAI/pythia-6.9b": NEOX(max_position_embeddings=2048),
    "EleutherAI/pythia-12b": NEOX(max_position_embeddings=2048),
    "mosaicml/mpt-7b": transformers.MptConfig(max_seq_len=2048),
    "microsoft/Phi-3-mini-128k-instruct": transformers.Phi3Config(
        max_position_embeddings=131072, original_max_position_embeddings=4096
    ),
}


@pytest.fixture(autouse=True)
def _folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MESA_OUT", str(tmp_path / "out"))


@cache
def known_tasks():
    return TaskManager()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_method_fits_every_model_and_every_task_is_known(path):
    sweep = load_sweep(path)
    assert sweep.name == path.stem and sweep.wandb is not None and sweep.wandb.project == "mesa-lm"
    assert {choice.method for choice in sweep.methods} >= {"mesa"}
    for model in sweep.models:
        config = CONFIGS[model.name]
        for choice in sweep.methods:
            method = settings.make_method(choice.method, **choice.parameters)
            check_supported(config, method)
            method.bind(config)
            if path in PAPER and choice.method == "streaming_llm":
                assert choice.parameters["recent_size"] == train_length_of(config) - 4
            if path in PAPER and choice.method == "lm_infinite":
                assert choice.parameters["n_global"] == 100
    manager = known_tasks()
    for task in sweep.tasks:
        assert manager.match_tasks([task.task]) == [task.task]
        known = manager.option_names([task.task])
        assert known is None or set(sweep.metadata(task)) <= set(known)


def test_folders_of_shipped_sweeps_are_their_own():
    out = [load_sweep(path).out for path in FILES]
    assert len(set(out)) == len(out)
    assert not any(one in other.parents for one in out for other in out)


def test_the_papers_six_models_are_those_of_its_figure_3():
    models = [model.name for path in PAPER if path.stem.startswith("figures_3_4") for model in load_sweep(path).models]
    others = {"demo", "meta-llama/Llama-2-7b-hf", "lmsys/vicuna-13b-v1.5", "microsoft/Phi-3-mini-128k-instruct"}
    assert sorted(models) == sorted(set(CONFIGS) - others)


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.stem not in {"figure_10", "tables_1_2", "table_3"}],
    ids=lambda path: path.stem,
)
def test_a_dry_run_counts_a_shard_for_every_length(path, tmp_path):
    """Of the demo model and of tasks that need no data of the hub, two samples of each length, each a shard."""
    sweep = load_sweep(path)
    tasks = [json.loads(task.model_dump_json(exclude_defaults=True)) for task in sweep.tasks]
    for task in tasks:
        task["metadata"] = {**task.get("metadata", {}), "num_samples": 2}
        task["metadata"].pop("data", None)  # the embedded text
        task.pop("limit", None)
    lengths = sorted(sweep.lengths)[:2]
    sets = {"models": [{}], "tasks": tasks, "lengths": lengths, "shard_tokens": 1}
    # Parameters are for models of thousands of tokens.
    sets["methods"] = sorted({choice.method for choice in sweep.methods})
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    done = run("sweep", path, "--dry-run", "--out", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    count = len(sets["methods"]) * len(tasks) * len(lengths) * 2
    assert f"{count} shards, 0 of them done" in done.stdout.splitlines()[-1]
