"""A sweep goes on from what an earlier run stored only as long as the sources that answered are the same."""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("ray")
from mesa_lm.harness.sources import PACKAGE
from mesa_lm.reporting.results import read

SWEEP = """
name: test
out: OUT
methods: [rerope]
tasks: [{task: passkey_long, metadata: {num_samples: 4}}]
lengths: [2048]
shard_tokens: 5000
workers: {count: 1}
"""


@pytest.mark.slow
def test_a_broken_engine_is_not_hidden_by_what_it_answered_before(tmp_path):
    """The copy's sources are what the driver and the workers import."""
    root = tmp_path / "copied"
    shutil.copytree(PACKAGE, root / "mesa_lm", symlinks=False, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.replace("OUT", str(tmp_path / "out")))
    where = os.environ | {"PYTHONPATH": str(root)}

    def run_again():
        command = [sys.executable, "-m", "mesa_lm", "sweep", str(path)]
        ended = subprocess.run(command, capture_output=True, text=True, env=where, cwd=tmp_path, check=False)
        assert ended.returncode == 0, ended.stderr
        told = json.loads((tmp_path / "out" / "summary.json").read_text())
        return told["done"], told["reused"], read([tmp_path / "out" / "results"]).select("acc").table.value.tolist()

    assert run_again() == (2, 0, [1.0])
    assert run_again() == (2, 2, [1.0])
    engine = root / "mesa_lm" / "methods" / "rerope.py"
    broken = engine.read_text().replace("Clamped(near=self.window)", "Clamped(near=10**9)")
    assert broken != engine.read_text()
    engine.write_text(broken)
    done, reused, accuracy = run_again()
    assert (done, reused) == (2, 0) and accuracy[0] < 1
