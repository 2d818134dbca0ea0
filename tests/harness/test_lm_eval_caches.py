"""lm-eval's caches under mesa-hf: neither another model's answers nor another length's prompts, and nothing lost."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import CachingLM
from lm_eval.caching import cache as request_cache
from lm_eval.models.huggingface import HFLM
from word_model import pairs, requests, text

from mesa_lm.harness.lm_eval_caches import weights_digest
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.task_manager import TaskManager

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def evaluated(model_args: dict, tasks: str, metadata: dict, **options: object) -> list[dict]:
    """The logged samples of a run by lm-eval's own entry point."""
    manager = TaskManager(include_defaults=False, metadata={**model_args, **metadata})
    results = simple_evaluate(
        "mesa-hf", model_args=model_args, tasks=[tasks], task_manager=manager, bootstrap_iters=0, **options
    )
    return [sample for samples in results["samples"].values() for sample in samples]


PASSKEY = {"lengths": [149], "num_samples": 2}


def resps(samples: list[dict]) -> list:
    return [sample["resps"] for sample in samples]


@pytest.mark.parametrize(
    "other", [{"method": "origin"}, {"extrapolated_width": 3}, {"dtype": "bfloat16"}, {"max_length": 301}]
)
def test_answers_are_served_to_the_same_run_alone(model_path, tmp_path, other) -> None:
    settings = {"lengths": [211], "data": str(tmp_path / "text.txt"), "num_samples": 1}
    Path(settings["data"]).write_text(text(997, 3))
    base, path = {"pretrained": model_path, "dtype": "float32"}, str(tmp_path / "answers")
    first = resps(evaluated(base, "long_ppl", settings, use_cache=path))
    second = resps(evaluated(base | other, "long_ppl", settings, use_cache=path))
    assert second == resps(evaluated(base | other, "long_ppl", settings))
    assert second != first
    assert resps(evaluated(base, "long_ppl", settings, use_cache=path)) == first


def test_answers_of_hf_are_not_served(model_path, tmp_path) -> None:
    path, asked = str(tmp_path / "answers.db"), requests("loglikelihood", *pairs([131]))
    stock = CachingLM(HFLM(pretrained=model_path, device="cpu"), path).loglikelihood(asked)
    assert CachingLM(MesaHFLM(pretrained=model_path), path).loglikelihood(asked) != stock


def test_other_weights_at_the_same_place_are_another_model(model_path, tmp_path) -> None:
    model = MesaHFLM(pretrained=model_path, method="origin")
    path, asked = str(tmp_path / "answers.db"), requests("loglikelihood", *pairs([31]))
    before, digest = CachingLM(model, path).loglikelihood(asked), weights_digest(model.model)
    with torch.no_grad():
        model.model.lm_head.weight.mul_(1.5)
    assert weights_digest(model.model) != digest
    assert CachingLM(model, path).loglikelihood(asked) != before


def test_answers_of_other_sources_are_not_served(model_path, tmp_path, monkeypatch) -> None:
    path, asked = str(tmp_path / "answers.db"), requests("loglikelihood", *pairs([31]))
    model = MesaHFLM(pretrained=model_path, method="origin")
    before = CachingLM(model, path).loglikelihood(asked)
    monkeypatch.setattr(model, "loglikelihood", lambda *asked, **options: [(-1.0, False)] * len(asked[0]))
    assert CachingLM(model, path).loglikelihood(asked) == before
    monkeypatch.setattr("mesa_lm.harness.model.package_digest", lambda: "edited")
    assert CachingLM(model, path).loglikelihood(asked) == [(-1.0, False)] != before


@pytest.fixture
def saved_requests(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(request_cache, "PATH", str(tmp_path / "requests"))
    return tmp_path / "requests"


@pytest.mark.usefixtures("saved_requests")
def test_prompts_are_found_again_for_the_same_documents_alone(tmp_path, saved_requests) -> None:
    def lengths(metadata: dict, task: str) -> list[int]:
        samples = evaluated({}, task, metadata, cache_requests=True)
        return [sample["doc"]["length"] for sample in samples] + [len(sample["arguments"][0][0]) for sample in samples]

    short = lengths({"num_samples": 1, "seed": 1}, "passkey_long_149")
    saved = len(list(saved_requests.iterdir()))
    assert lengths({"num_samples": 1, "seed": 1}, "passkey_long_149") == short
    assert len(list(saved_requests.iterdir())) == saved == 1
    assert len(lengths({"num_samples": 2, "seed": 1}, "passkey_long_149")) == 4
    lengths({"num_samples": 1, "seed": 2}, "passkey_long_149")
    assert len(list(saved_requests.iterdir())) == 3


KINDS = {
    "loglikelihood": pairs([31, 131, 62, 211]),
    "loglikelihood_rolling": [(text(length, length),) for length in (31, 131, 62, 211)],
    "generate_until": [(text(length, 1), {"max_gen_toks": 2, "until": []}) for length in (31, 131, 62, 211)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on_from_its_finished_answers(model_path, tmp_path, monkeypatch, caplog, kind) -> None:
    path, asked = str(tmp_path / "answers.db"), requests(kind, *KINDS[kind])
    step = "_model_generate" if kind == "generate_until" else "scored_states"
    calls = []

    def counting(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    original = getattr(MesaHFLM, step)
    expected = getattr(MesaHFLM(pretrained=model_path), kind)(asked)
    monkeypatch.setattr(MesaHFLM, step, counting)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, "lm_eval.models.mesa_hf"):
        getattr(CachingLM(MesaHFLM(pretrained=model_path), path), kind)(asked)
    assert f"Interrupted. 2 finished answers are kept in {path}" in caplog.text
    assert getattr(CachingLM(MesaHFLM(pretrained=model_path), path), kind)(asked) == expected
    assert len(calls) == 3 + 2


def test_without_a_cache_nothing_is_said_to_be_kept(model_path, monkeypatch, caplog) -> None:
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(MesaHFLM, "scored_states", interrupted)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, "lm_eval.models.mesa_hf"):
        MesaHFLM(pretrained=model_path).loglikelihood(requests("loglikelihood", *pairs([31])))
    assert "No answers are kept" in caplog.text


@pytest.mark.slow
def test_a_command_that_was_stopped_goes_on(tmp_path) -> None:
    command = [sys.executable, "-m", "lm_eval", "--model", "mesa-hf", "--tasks", "passkey_long_512"]
    command += ["--metadata", '{"num_samples": 60}', "--use_cache", str(tmp_path / "answers")]
    file = tmp_path / "answers_rank0.db"
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while first.poll() is None and kept(file) < 3:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    _, said = first.communicate()
    assert first.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in said and "finished answers are kept in" in said
    before = kept(file)
    assert 3 <= before < 60
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"Cached requests: {before}, Requests remaining: {60 - before}" in second.stderr


def kept(file: Path) -> int:
    """Answers in the cache of one model and method."""
    if not file.exists():
        return 0
    with sqlite3.connect(file) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'mesa_lm %'")]
        return sum(connection.execute(f'SELECT COUNT(*) - 1 FROM "{name}"').fetchone()[0] for name in tables)
