"""The stages of a benchmark on a GPU, on a CPU: each runs once, and the targets are told from what was measured."""

import json
import subprocess

import pytest
from typer.testing import CliRunner

from mesa_lm.pipelines.development import gpu_targets
from mesa_lm.pipelines.development.gpu_targets import SpeedTarget, measured, methods_of, run_stage, targets


def save(folder, method, prefill, decode, oom=0.0, **values):
    """A results file as `mesa-lm bench` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "results": {"bench_bfloat16_b1_x": {f"{name},none": value for name, value in {"oom": oom, **values}.items()}},
        "bench": {"cells": [{"length": 1, "prefill_s": prefill, "decode_s": decode}]},
        "config": {"mesa_lm": {"method": method}},
    }
    (folder / f"results_{method}.json").write_text(json.dumps(report))


def test_ratios_are_medians_of_rounds(tmp_path):
    save(tmp_path / "128k", "origin", [2.0, 4.0, 8.0], [1.0, 1.0, 2.0])
    save(tmp_path / "128k", "mesa", [1.0, 1.0, 1.0], [1.2, 1.0, 2.0], floor_ratio=1.25)
    save(tmp_path / "512k", "mesa", [], [], oom=1.0)
    found = {(target.what, target.method): measured(tmp_path, target) for target in targets("128k", "32k", "512k")}
    assert found["prefill", "mesa"] == 0.25 and found["decode", "mesa"] == 1.0 and found["floor", "mesa"] == 1.25
    assert found["memory", "mesa"] == 1.0 and found["prefill", "rerope"] is None


def test_plain_attention_is_not_asked_for_where_it_takes_longest():
    assert methods_of(2**19, 2**17, 2**15) == ("mesa",)
    assert methods_of(2**16, 2**17, 2**15) == ("origin", "mesa")
    assert {target.method for target in targets("128k", "32k", "512k")} <= {"mesa", *methods_of(2**15, 2**17, 2**15)}


def test_a_stage_that_takes_too_long_is_a_result_and_one_that_fails_is_not(tmp_path):
    run_stage(tmp_path / "slow", ["--lengths", "1k"], limit_s=0.01)
    assert json.loads((tmp_path / "slow" / "stopped.json").read_text()) == {"limit_s": 0.01}
    assert measured(tmp_path, SpeedTarget("mesa", "slow", "prefill", 1.0)) is None
    with pytest.raises(subprocess.CalledProcessError):
        run_stage(tmp_path / "wrong", ["--device", "none"], limit_s=60)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.slow
def test_stages_run_once_and_a_line_per_target_is_the_end(tmp_path, monkeypatch):
    app = gpu_targets.typer.Typer()
    app.command()(gpu_targets.gpu_targets)
    lengths = ["--lengths", "100,150,3000", "--middle", "100", "--long", "150", "--longest", "3000"]
    options = [str(tmp_path), "--shapes", "tiny-6x512", "--device", "cpu", "--dtype", "float32", *lengths]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    lines = json.loads((tmp_path / "targets.json").read_text())
    assert len(lines) == len(targets("", "", "")) == len(result.stdout.splitlines()[-len(lines) :])
    assert result.stdout.splitlines()[-1].startswith("reached")  # 3000 tokens fit into memory
    # Within the training length there are no chunks, and so no floor.
    assert [line["what"] for line in lines if line["found"] is None] == ["floor"]
    monkeypatch.setattr(gpu_targets.subprocess, "run", None)
    again = CliRunner().invoke(app, options, catch_exceptions=False)
    assert again.stdout.splitlines() == result.stdout.splitlines()[-len(lines) :]
