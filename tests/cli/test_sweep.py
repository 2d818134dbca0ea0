"""The command `mesa-lm sweep`: what it prints, and its exit status."""

from pathlib import Path

import pytest
from command_line import in_process, run

pytest.importorskip("ray")
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
    done = run("sweep", path, "--dry-run", "--tokens-per-s", 1000, "--set", "tasks.0.limit=3")
    assert done.exit_code == 0
    cells = [[text.strip() for text in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert cells == [
        ["demo", "mesa", "passkey_long_80", "80", "2", "3", "240"],
        ["demo", "mesa", "passkey_long_1k", "1k", "3", "3", "3,072"],
        ["demo", "rerope (window=40)", "passkey_long_80", "80", "2", "3", "240"],
        ["demo", "rerope (window=40)", "passkey_long_1k", "1k", "3", "3", "3,072"],
    ]
    last = "10 shards, 0 of them done; 6,624 tokens, about 0.0 GPU-hours at 1,000 tokens per second"
    assert done.stdout.splitlines()[-1] == last
    assert not (path.parent / "out").exists()


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
