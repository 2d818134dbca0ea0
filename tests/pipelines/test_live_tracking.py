"""What is logged to W&B while a sweep runs, read back from the files of offline runs; and W&B that does not answer."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from made_results import save_results

pytest.importorskip("wandb")
import wandb_files
from wandb.sdk.lib import wbauth

from mesa_lm.pipelines import live_tracking
from mesa_lm.pipelines.live_tracking import LiveTracking, settled_mode
from mesa_lm.pipelines.progress import Snapshot
from mesa_lm.pipelines.tracking import Target, log_results


@pytest.fixture
def target(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield Target(project="p", group="night 1", folder=tmp_path / "tracking")
    wbauth.unauthenticate_session(update_settings=False)


def snapshot(done):
    return Snapshot(
        time=1000.0,
        total=4,
        done=done,
        failed=0,
        out_of_memory=0,
        running=1,
        waiting=3 - done,
        tokens_per_s=50.0,
        eta_s=10.0,
        lacking="",
        workers=[{"node": "n" * 20, "pid": 7, "model": "m", "shard": None, "tokens_per_s": 25.0, "gpu_bytes": 2**31}],
    )


def runs(target):
    folders = target.folder.glob("wandb/offline-*")
    return {wandb_files.run_of(folder).display_name: folder for folder in folders}


def test_every_method_fills_length_by_length_and_is_replaced_by_the_whole(target, tmp_path, monkeypatch):
    monkeypatch.setattr(live_tracking, "LOG_EVERY_S", 0.0)
    results = tmp_path / "results"
    live = LiveTracking(target)
    for done, lengths in enumerate([(1024,), (512, 1024)], start=1):
        path = save_results(results / "0-0-0" / "base", "mesa", {n: {"a": 1.0, "b": 0.0} for n in lengths})
        live.merged(path, [{512: "keys_512", 1024: "keys_1k"}[lengths[0]]])
        live.show(snapshot(done))
    live.close()
    found = runs(target)
    assert sorted(found) == ["base mesa", "sweep night 1"]
    rows = [row for row in wandb_files.history(found["base mesa"]) if "length" in row]
    # A file is read when its turn comes, and may have grown since.
    assert {(row["length"], row["keys/acc"]) for row in rows} == {(512, 0.5), (1024, 0.5)}
    own = wandb_files.history(found["sweep night 1"])
    assert [row["shards/done"] for row in own] == [1, 2]
    assert (own[0]["eta_s"], own[0]["estimated_end"]) == (10.0, 1010.0)
    assert own[0]["worker/nnnnnnnn-7/gpu_gib"] == 2.0 and own[0]["worker/nnnnnnnn-7/tokens_per_s"] == 25.0
    described = {name: wandb_files.run_of(folder) for name, folder in found.items()}
    assert described["sweep night 1"].job_type == "sweep" and described["sweep night 1"].run_group == "night 1"
    log_results([results], target)
    assert sorted(runs(target)) == ["base mesa", "leaderboard", "sweep night 1"]
    assert len(list(target.folder.glob("wandb/offline-*"))) == 3  # the live one is gone


@pytest.fixture
def answering(target, monkeypatch):
    """Serve W&B at an address of this machine with what answers a connection."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    closing = []

    def serve(server, address):
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{address}")
        closing.append(server)

    yield serve
    for server in closing:
        server.close() if isinstance(server, socket.socket) else server.shutdown()


def test_a_server_that_hangs_costs_one_bounded_wait(target, answering, monkeypatch, caplog):
    monkeypatch.setattr(live_tracking, "ANSWER_S", 1)
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections, and says nothing
    answering(silent, silent.getsockname()[1])
    began = time.monotonic()
    live = LiveTracking(target)
    assert 1 <= time.monotonic() - began < 20
    assert live.target.mode == "offline" and settled_mode(live.target) == "offline"
    assert caplog.text.count("W&B does not answer, logging offline") == 1
    live.close()


@pytest.mark.parametrize(("status", "mode"), [(500, "offline"), (503, "offline"), (200, "online"), (401, "online")])
def test_a_server_that_only_has_errors_is_not_spoken_to(target, answering, status, mode, caplog):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *about):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answering(server, server.server_port)
    assert settled_mode(target) == mode
    assert ("logging offline" in caplog.text) == (mode == "offline")
