"""The command `mesa-lm sweep`: what it prints, and its exit status."""

import json
import sys
from pathlib import Path

import pytest
from command_line import in_process, run

from mesa_lm.demo import MODEL_PATH
from mesa_lm.lengths import length_label

pytest.importorskip("ray")
from mesa_lm.cli import sweep as command
from mesa_lm.pipelines import run as run_module
from mesa_lm.pipelines import tracking
from mesa_lm.pipelines.outcome import Outcome
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store

SWEEP = """
name: small
out: OUT
methods: [mesa, {method: rerope, window: 40}]
tasks: [{task: passkey_long, metadata: {num_samples: 4}}]
lengths: [80, 1024]
shard_tokens: 200
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("OUT", str(tmp_path / "out")))
    return tmp_path / "sweep.yaml"


def shards(count):
    common = {
        "model": 0,
        "method": 1,
        "task": 0,
        "leaf": "passkey_long_80",
        "length": 80,
        "cost": 80,
        "documents": "",
        "sources": "",
    }
    return [Shard(key=f"k{i}", start=i, stop=i + 1, **common) for i in range(count)]


def finishes(monkeypatch, outcome):
    """Let a sweep end so, without running it."""
    monkeypatch.setattr(run_module, "run_sweep", lambda sweep, address, live: outcome)


def test_dry_run_prints_shards_and_cost_and_writes_nothing(path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run("sweep", path, "--dry-run", "--tokens-per-s", 1, "--set", "tasks.0.limit=3")
    assert done.exit_code == 0
    cells = [[text.strip() for text in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert cells == [
        ["demo", "mesa", "passkey_long_80", "80", "2", "3", "240", "0.07"],
        ["demo", "mesa", "passkey_long_1k", "1k", "3", "3", "3,072", "0.85"],
        ["demo", "rerope (window=40)", "passkey_long_80", "80", "2", "3", "240", "0.07"],
        ["demo", "rerope (window=40)", "passkey_long_1k", "1k", "3", "3", "3,072", "0.85"],
    ]
    last = "10 shards, 0 of them done; 6,624 tokens; about 1.84 hours of one worker, by 1 tokens per second"
    assert done.stdout.splitlines()[-1] == last
    assert not (path.parent / "out").exists()


def bench_file(folder, model, method, seconds, decode_s=1e-12):
    """What `mesa-lm bench` writes of times by length."""
    names = {f"bench_float16_b1_{length_label(length)}": (length, value) for length, value in seconds.items()}
    content = {
        "results": {n: {"prefill_s,none": value, "decode_s,none": decode_s} for n, (_, value) in names.items()},
        "configs": {name: {"metadata": {"length": length}} for name, (length, _) in names.items()},
        "group_subtasks": {"bench_float16_b1": list(names)},
        "higher_is_better": {name: {"prefill_s": False, "decode_s": False} for name in names},
        "config": {"model": "mesa-lm bench", "model_args": {"pretrained": model, "method": method}},
        "bench": {"device": "Some GPU"},
    }
    folder.mkdir(exist_ok=True)
    (folder / f"results_{model}_{method}.json").write_text(json.dumps(content))


def test_times_are_estimated_from_a_benchmark_quadratic_where_it_was(path, tmp_path, monkeypatch):
    """At 80 and 1024 tokens, 4 samples each, from 256 and 512; up to 32 new tokens each."""
    monkeypatch.setenv("COLUMNS", "200")
    rates = tmp_path / "bench"
    bench_file(rates, "demo", "mesa", {256: 256.0, 512: 512.0}, decode_s=2.0)
    bench_file(rates, "demo", "rerope", {256: 0.5 * 256**2, 512: 0.5 * 512**2})
    done = run("sweep", path, "--dry-run", "--rates", rates)
    assert done.exit_code == 0, done.output
    hours = [line.split("│")[-2].strip() for line in done.stdout.splitlines() if "│" in line]
    expected = [4 * (80 + 32 * 2), 4 * (1024 + 32 * 2), 4 * 0.5 * 80**2, 4 * 0.5 * 1024**2]
    assert hours == [f"{seconds / 3600:.2f}" for seconds in expected]
    assert done.stdout.splitlines()[-1].endswith(
        f"about {sum(expected) / 3600:.2f} hours of one worker, by the rates measured on Some GPU"
    )


def test_a_model_stands_for_one_of_another_size_and_the_rest_is_named(path, tmp_path):
    rates = tmp_path / "bench"
    bench_file(rates, "llama-2-7b", "mesa", {256: 3600.0, 512: 7200.0})
    bench_file(rates, "llama-2-70b", "mesa", {256: 1.0, 512: 2.0})
    (tmp_path / "Tiny-14b").symlink_to(MODEL_PATH)
    options = ("--set", f"models=[{{pretrained: {tmp_path / 'Tiny-14b'}}}]", "--set", "lengths=[256]")
    done = run("sweep", path, "--dry-run", "--rates", rates, *options)
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert "about 8.00 hours of one worker" in last  # 4 samples, of two hours each
    assert last.endswith(f"; not measured, and left out: rerope (window=40) on {tmp_path / 'Tiny-14b'}")


def test_without_rates_no_time_is_claimed(path, tmp_path):
    assert "how long is not known: give --rates" in run("sweep", path, "--dry-run").stdout
    wrong = in_process("sweep", path, "--rates", tmp_path)
    assert wrong.returncode == 2 and "--rates and --tokens-per-s go with --dry-run" in wrong.stderr
    bench_file(tmp_path / "bench", "demo", "mesa", {256: 1.0})
    done = in_process("sweep", path, "--dry-run", "--rates", tmp_path / "bench")
    assert done.returncode == 2 and "was measured at one length; growth takes two or more" in done.stderr


def test_what_is_done_is_status_0_with_the_results_files(path, monkeypatch):
    finishes(
        monkeypatch, Outcome(done=5, reused=2, out_of_memory=set(shards(1)), results=[Path("a.json"), Path("b.json")])
    )
    done = run("sweep", path)
    said = "5 shards done, 2 of them by an earlier run; 0 failed, 1 out of memory\na.json\nb.json\n"
    assert (done.exit_code, done.stdout, done.stderr) == (0, said, "")


def test_failures_are_status_1_and_those_alike_are_said_once(path, monkeypatch):
    alike = dict.fromkeys(shards(5), "no disk")
    finishes(monkeypatch, Outcome(failed=alike, unwritten={"demo, mesa": "full"}))
    done = run("sweep", path)
    assert done.exit_code == 1
    where = "failed: demo, rerope (window=40), passkey_long_80, samples"
    assert done.stderr.splitlines() == [
        *(f"{where} {i} to {i}: no disk (log: logs/k{i}.log)" for i in range(3)),
        "failed: 2 more shards: no disk",
        "not written: demo, mesa: full; the shards are kept, run the sweep again",
    ]


def test_out_and_set_replace_settings_and_results_are_tracked(path, monkeypatch, tmp_path):
    ran, tracked = [], []
    finished = Outcome(results=[Path("a.json")])
    monkeypatch.setattr(run_module, "run_sweep", lambda *given, live: ran.append(given) or finished)
    monkeypatch.setattr(tracking, "log_results", lambda results, target: tracked.append((results, target)))
    other = tmp_path / "other"
    done = run("sweep", path, "--out", other, "--set", "wandb={project: p, mode: offline}", "--address", "auto")
    assert done.exit_code == 0
    ((sweep, address),) = ran
    assert (sweep.out, address) == (other, "auto")
    (((results,), target),) = tracked
    assert results == other / "results"
    assert (target.project, target.group, target.folder, target.mode) == ("p", "small", other / "tracking", "offline")


def test_without_the_client_of_wandb_a_sweep_runs_all_the_same(path, monkeypatch):
    finishes(monkeypatch, Outcome(done=1, results=[Path("a.json")]))
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "wandb" else pytest.fail(name))
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = run("sweep", path, "--set", "wandb={project: p, mode: offline}")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "a.json")
    assert done.stderr.startswith("W&B's client is not installed")


def test_ctrl_c_says_what_is_kept(path, monkeypatch):
    store = Store(path.parent / "out")
    store.write_shard("k", {})

    def interrupted(sweep, address, live):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run_sweep", interrupted)
    done = run("sweep", path)
    assert done.exit_code == 130
    assert done.stderr.startswith(
        f"interrupted: 1 finished shards are kept in {store.folder}; the same command goes on"
    )


@pytest.mark.parametrize("address", ["banana", "ray://", "http://host:1", "host:port", ""])
def test_an_address_that_is_none_is_refused(path, address):
    done = in_process("sweep", path, "--address", address)
    assert (done.returncode, done.stdout) == (2, "")
    said = f"error: --address must be auto, HOST:PORT or ray://HOST:PORT, found {address!r}"
    assert done.stderr.splitlines()[-1] == said


def test_a_data_set_out_of_reach_is_one_line(path):
    """Off the network, as all tests are."""
    done = in_process("sweep", path, "--dry-run", "--set", "tasks=[hellaswag]")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("error: task 'hellaswag' cannot be loaded here: ")
    assert "Traceback" not in done.stderr


def test_an_empty_folder_is_refused(path):
    done = in_process("sweep", path, "--out", "")
    assert done.returncode == 2 and "out: must be a folder of its own" in done.stderr


def test_a_wrong_file_is_status_2_and_one_line(tmp_path):
    done = in_process("sweep", tmp_path / "none.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}/none.yaml: cannot be read: No such file or directory\n"
