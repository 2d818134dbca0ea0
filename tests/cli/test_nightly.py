"""The command `mesa-lm nightly`: two nights in a row, and what they leave."""

import json
from datetime import datetime, timedelta
from functools import partial

import pytest
from command_line import in_process, run

pytest.importorskip("ray")
import ray
from fake_worker import FakeWorker, RightWorker, order, ran, start_ray

from mesa_lm.demo import MODEL_PATH
from mesa_lm.pipelines import run as run_module
from mesa_lm.pipelines import sweep_file
from mesa_lm.pipelines.sweep_file import load_sweep

SWEEP = """
name: watch
out: ROOT/nights/{date}
keep: 3
models: [{pretrained: MODEL}]
methods: [rerope]
tasks: [{task: passkey_long, metadata: {num_samples: 6}}]
lengths: [80, 130]
shard_tokens: 300
workers: {cpus: 1}
wandb: {project: p, mode: disabled}
"""
FIRST = datetime(2026, 3, 1, 1)


@pytest.fixture(scope="module")
def local_ray():
    start_ray(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Run a night's job: its number, and the workers of that night."""
    path = tmp_path / "watch.yaml"
    path.write_text(SWEEP.replace("ROOT", str(tmp_path)).replace("MODEL", str(MODEL_PATH)))
    stock = run_module.run_sweep

    def night(number, factory, *options):
        monkeypatch.setattr(sweep_file, "local_time", lambda: FIRST + timedelta(days=number))
        monkeypatch.setattr(run_module, "run_sweep", partial(stock, factory=factory))
        return load_sweep(path), run("nightly", path, *options)

    return night


def test_two_nights_in_a_row(job, local_ray, tmp_path):
    root = tmp_path / "nights"
    first, done = job(0, RightWorker)
    assert (first.out, first.wandb.group) == (root / "2026-03-01", "watch 2026-03-01")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == [str(first.out / "leaderboard.html"), str(root / "history.html")]
    shards = sum(ran(first).values())

    # Started again the same night, it goes on in the same folder.
    _, again = job(0, RightWorker)
    assert again.exit_code == 0 and f"{shards} shards done, {shards} of them by an earlier run" in again.stdout

    # The second night evaluates all anew, and is compared with the first.
    second, done = job(1, FakeWorker)
    assert sum(ran(second).values()) == shards and f"{shards} shards done, 0 of them by" in done.stdout
    assert done.exit_code == 1
    assert "worse: rerope on passkey_long" in done.stderr
    page = (root / "history.html").read_text()
    assert "2026-03-01" in page and "2026-03-02" in page
    assert page.index("2026-03-02") < page.index('<strong class="worse">worse</strong>') < page.index("2026-03-01")
    assert "1.000" in page and "0.000" in page
    measured = json.loads((second.out / "night.json").read_text())
    assert measured["against"] == "2026-03-01" and len(measured["commit"]) == 40

    # A night that is not whole fails, and is nothing to compare with.
    third, _ = (load_sweep(tmp_path / "watch.yaml"), None)
    third.out.with_name("2026-03-03").mkdir()
    order(third.model_copy(update={"out": third.out.with_name("2026-03-03")}), 0, "passkey_long_80", 0, "failed")
    third, done = job(2, FakeWorker)
    assert done.exit_code == 1 and "failed on purpose" in done.stderr

    # Three nights are kept; of the others what the history shows.
    fourth, done = job(3, RightWorker)
    assert done.exit_code == 0, done.output
    assert json.loads((fourth.out / "night.json").read_text())["against"] == "2026-03-02"
    assert [path.name for path in first.out.iterdir()] == ["night.json"]
    assert (second.out / "results").is_dir() and (third.out / "shards").is_dir()
    page = (root / "history.html").read_text()
    assert all(f"2026-03-0{day}" in page for day in (1, 2, 3, 4)) and '<strong class="better">better</strong>' in page


def test_a_folder_that_is_every_nights_is_refused(tmp_path):
    path = tmp_path / "watch.yaml"
    path.write_text(SWEEP.replace("ROOT/nights/{date}", str(tmp_path / "out")))
    done = in_process("nightly", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "out of a nightly job must end in a folder of the night's own, such as" in done.stderr
    assert len(done.stderr.splitlines()) == 1
