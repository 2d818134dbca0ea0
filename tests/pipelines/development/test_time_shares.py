"""The share of the model in an `lm_eval` run is measured."""

import json
import subprocess
import sys


def test_parts_are_shorter_than_the_whole():
    command = [sys.executable, "-m", "mesa_lm.pipelines.development.time_shares", "--model", "mesa-hf"]
    command += ["--tasks", "passkey_long_600", "--limit", "2"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    spent = json.loads(found.stdout.splitlines()[-1])
    assert 0 < spent["model_s"] < spent["evaluation_s"] < spent["total_s"]
    assert 0 < spent["share_of_total"] < spent["share_of_evaluation"] < 1
