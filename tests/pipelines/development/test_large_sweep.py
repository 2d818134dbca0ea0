"""The measurement of a large sweep, on a small one."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("filelock")


@pytest.mark.slow
def test_going_on_opens_every_shard_once(tmp_path):
    """In a process of its own, because what counts opened files cannot be taken back."""
    sizes = {"models": 2, "methods": 3, "tasks": 2, "lengths": 2, "shards": 48, "folder": tmp_path}
    options = [text for name, size in sizes.items() for text in (f"--{name}", str(size))]
    command = [sys.executable, "-m", "mesa_lm.pipelines.development.large_sweep", *options]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "48 shards of 24 lengths of models, methods and tasks" in shown
    opened = {step: int(count) for step, count in re.findall(r"^(.*): [\d.]+ s, (\d+) files", shown, re.MULTILINE)}
    results = 2 * 3 * 2
    assert opened["go on"] <= 48 + results + 4
    assert opened["leaderboard"] <= 3 * results
    assert opened["status"] <= 4
    assert not list(tmp_path.iterdir())
