"""lm-eval in gangs: the results of one process, whoever shares what."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import rank_cases

from mesa_lm.errors import MethodError, UsageError
from mesa_lm.harness.gangs import check_gang
from mesa_lm.methods.registry import make_method

TASKS = ["passkey_long_1k", "long_ppl_1k"]
OPTIONS = {"metadata": {"num_samples": 5}}


def assert_same(found, expected):
    """Compare, numbers up to rounding."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            assert_same(found[name], expected[name])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected)


def test_two_gangs_share_the_requests(gang, tmp_path):
    expected = rank_cases.evaluated(None, "", TASKS, None, OPTIONS)
    first, *others = gang.run(rank_cases.evaluated, "cp_size=2", TASKS, tmp_path / "answers", OPTIONS)
    assert others == [None] * 3
    samples = [sorted(found["samples"]["passkey_long_1k"], key=lambda s: s["doc_id"]) for found in (first, expected)]
    # lm-eval asks the last question of a gang with fewer ones again, so that all make as many calls.
    assert [s["filtered_resps"] for s in samples[0]] == [s["filtered_resps"] for s in samples[1]]
    assert_same(first["results"], expected["results"])


def test_answers_are_kept_for_any_number_of_processes(gang, tmp_path):
    path = tmp_path / "answers"
    (first, *_) = gang.run(rank_cases.evaluated, "cp_size=4", TASKS[:1], path, OPTIONS)
    (again, *_) = gang.run(rank_cases.evaluated, "cp_size=4", TASKS[:1], path, OPTIONS)
    assert_same(again["results"], first["results"])
    assert_same(rank_cases.evaluated(None, "", TASKS[:1], path, OPTIONS)["results"], first["results"])


@pytest.mark.parametrize(
    ("size", "arguments", "told"),
    [
        (0, {}, "cp_size must be a whole number of processes, at least 1; found 0"),
        ("2", {}, "cp_size must be a whole number of processes, at least 1; found '2'"),
        (3, {}, "cp_size=3 needs 3 processes, or a multiple of it, found 4; begin with torchrun"),
        (2, {"batch_size": "auto"}, "cp_size=2 needs a number as batch_size"),
        (2, {"parallelize": True}, "cp_size=2 and parallelize both divide"),
        (2, {"tp_plan": "auto"}, "cp_size=2 and tp_plan both divide"),
    ],
)
def test_gangs_that_cannot_be_are_refused(size, arguments, told, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError, match=told):
        check_gang(size, make_method("mesa"), arguments)


def test_methods_without_chunks_have_no_gangs():
    with pytest.raises(
        MethodError,
        match="cp_size=2 is for methods that cut prompts into chunks, which 'rerope'",
    ):
        check_gang(2, make_method("rerope"), {})


def torchrun(tmp_path, *arguments, processes=2):
    port = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *port,
        "--nproc-per-node",
        str(processes),
        "-m",
        "lm_eval",
    ]
    command += ["--model", "mesa-hf", "--tasks", "passkey_long_1k", "--output_path", str(tmp_path / "ranks")]
    return [*command, *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["cp_size=2", "tp_plan=auto"])
def test_torchrun_writes_the_results_file_of_one_process(tmp_path, shared):
    """Of processes that share the chunks, or, by transformers, the heads and matrices of every layer."""
    options = ["--metadata", json.dumps({"num_samples": 4}), "--log_samples"]
    subprocess.run([*torchrun(tmp_path, "--model_args", shared, *options)], check=True, capture_output=True)
    alone = [sys.executable, "-m", "lm_eval", "--model", "mesa-hf", "--tasks", "passkey_long_1k"]
    subprocess.run([*alone, "--output_path", str(tmp_path / "one"), *options], check=True, capture_output=True)
    (ours,), (one,) = (list((tmp_path / name).rglob("results_*.json")) for name in ("ranks", "one"))
    found, expected = json.loads(ours.read_text()), json.loads(one.read_text())
    for name in ("results", "configs", "versions", "n-samples", "higher_is_better"):
        for config in (found, expected):
            for task in config["configs"].values():
                task["metadata"].pop(shared.partition("=")[0], None)
        assert_same(found[name], expected[name])
    (samples,), (others,) = (list((tmp_path / name).rglob("samples_*.jsonl")) for name in ("ranks", "one"))
    assert samples.read_text().count("\n") == others.read_text().count("\n") == 4


@pytest.mark.slow
def test_a_killed_process_ends_the_run(tmp_path):
    options = ["--model_args", "cp_size=2", "--metadata", json.dumps({"num_samples": 500})]
    run = subprocess.Popen(torchrun(tmp_path, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told = ""
    while "Generating:   0%" not in told:
        told += run.stdout.read(1)
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    start = time.monotonic()
    os.kill(int(children[-1]), signal.SIGKILL)
    told += run.communicate(timeout=60)[0]
    assert run.returncode != 0 and time.monotonic() - start < 60
    assert "exitcode  : -9" in told or "processes that share this prompt" in told
