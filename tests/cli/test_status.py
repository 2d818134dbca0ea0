"""The command `mesa-lm status`, on a folder that a sweep left."""

import json
import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import asdict

import pytest
from command_line import in_process, run

pytest.importorskip("ray")
from mesa_lm.cli import status
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.pipelines.store import Store


@pytest.fixture
def folder(tmp_path):
    """Of four shards one is done, one failed, one ran out of memory, and one was not run."""
    store = Store(tmp_path / "out")
    sweep = Sweep(name="night", out=store.folder, methods=["mesa", {"method": "rerope", "window": 5}], tasks=["t"])
    shards = [
        Shard(
            key=key,
            model=0,
            method=method,
            task=0,
            leaf=leaf,
            length=7,
            start=2,
            stop=4,
            cost=14,
            documents="",
            sources="",
        )
        for key, method, leaf in (("a", 0, "t_7"), ("b", 0, "t_7"), ("c", 1, "t_7"), ("d", 1, "t_9"))
    ]
    store.write("plan", {"sweep": sweep.model_dump(mode="json"), "shards": [asdict(shard) for shard in shards]})
    store.write_shard("a", {"responses": {}})
    store.write_failure("b", {"status": "failed", "error": "no luck"})
    store.write_failure("c", {"status": "oom", "error": "too long"})
    return store.folder


def test_json_has_a_cell_per_model_method_and_task_and_every_failure(folder):
    found = json.loads(run("status", folder, "--json").stdout)
    assert (found["sweep"], found["running"]) == ("night", False)
    assert [list(cell.values()) for cell in found["cells"]] == [
        ["demo", "mesa", "t_7", 1, 0, 1, 0],
        ["demo", "rerope (window=5)", "t_7", 0, 0, 0, 1],
        ["demo", "rerope (window=5)", "t_9", 0, 1, 0, 0],
    ]
    assert list(found["cells"][0]) == ["model", "method", "task", "done", "missing", "failed", "oom"]
    assert found["failures"] == [{"shard": "b", "where": "demo, mesa, t_7, samples 2 to 3", "error": "no luck"}]


def test_tables_say_the_same_and_whether_a_sweep_is_at_work(folder):
    shown = run("status", folder).stdout
    assert "night" in shown and "rerope (window=5)" in shown and "no sweep is at work" in shown
    assert "failed: demo, mesa, t_7, samples 2 to 3: no luck (log: logs/b.log)" in shown
    with Store(folder).locked():
        assert "\na sweep is at work" in run("status", folder).stdout


@pytest.fixture
def read_only(folder):
    """The folder as another user, or another machine, may see it; root is only stopped by a mount."""
    if os.geteuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    if subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


PROGRESS = {"time": 0.0, "total": 4, "done": 1, "failed": 1, "out_of_memory": 1, "running": 1, "waiting": 0}
PROGRESS |= {"tokens_per_s": 1234.0, "eta_s": 61.0, "lacking": "", "workers": [{"gpu_bytes": 3 * 2**30}]}


@pytest.mark.parametrize("age", [0, 3600])
def test_a_folder_that_may_only_be_read_is_shown(request, folder, age):
    with Store(folder).locked():
        pass  # leaves its lock
    (folder / "progress.json").write_text(json.dumps(PROGRESS | {"time": time.time() - age}))
    found = json.loads(run("status", request.getfixturevalue("read_only"), "--json").stdout)
    assert found["running"] == (not age) and len(found["cells"]) == 3


def test_follow_shows_a_bar_per_method_and_what_the_sweep_says_until_it_ends(folder, monkeypatch):
    (folder / "progress.json").write_text(json.dumps(PROGRESS | {"time": time.time()}))
    monkeypatch.setenv("COLUMNS", "120")
    with ExitStack() as work:
        work.enter_context(Store(folder).locked())
        monkeypatch.setattr(status.time, "sleep", lambda seconds: work.close())
        shown = run("status", folder, "--follow").stdout
    assert "rerope (window=5)" in shown and shown.rstrip().splitlines()[-2] == "no sweep is at work"
    assert status._said(PROGRESS) == "1 workers, 1,234 tokens/s, 3.0 GiB of GPU memory, ETA 0:01:01"


def test_another_folder_is_refused(tmp_path):
    done = in_process("status", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path}/plan.json: no plan of a sweep here; give the folder that `mesa-lm sweep` wrote\n"
    )
