"""What is measured for the documentation runs and says something."""

import json
import subprocess
import sys

import pytest

from mesa_lm.pipelines.development import chunk_sharing


def test_the_share_of_the_model_is_measured():
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "mesa_lm.pipelines.development.time_shares",
            "--model",
            "mesa-hf",
            "--tasks",
            "passkey_long_600",
            "--limit",
            "2",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    spent = json.loads(found.stdout.splitlines()[-1])
    assert 0 < spent["model_s"] < spent["evaluation_s"] < spent["total_s"]
    assert 0 < spent["share_of_total"] < spent["share_of_evaluation"] < 1


@pytest.mark.parametrize("method", ["mesa", "rerope"])
def test_what_requests_share_is_measured(method, capsys):
    chunk_sharing.main(["--tokens", "1500", "--questions", "2", "--choices", "2", "--method", method])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["largest_difference"] < 1e-3 and found["with_s"] > 0 and found["without_s"] > 0
