"""A worker's reports: what went wrong is a result, and wrong input stays wrong."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("ray")
from mesa_lm.pipelines import worker
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import plan_shards
from mesa_lm.pipelines.store import Store


@pytest.fixture
def planned(tmp_path):
    """A sweep of one shard, and the shard."""
    task = {"task": "passkey_long_80", "metadata": {"num_samples": 2}}
    sweep = Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=[task])
    (shard,) = plan_shards(sweep)
    return sweep, shard


def test_answers_are_stored(planned):
    sweep, shard = planned
    report = worker.Worker(sweep, 0).run(shard)
    assert (report.status, report.error) == ("done", "") and report.seconds > 0
    stored = Store(sweep.out).read_shard(shard.key)
    assert list(stored["responses"]) == ["0", "1"] and stored["leaf"] == "passkey_long_80"
    assert stored["peak_bytes"] > 2**26


def test_documents_that_were_not_planned_are_refused(planned):
    sweep, shard = planned
    report = worker.Worker(sweep, 0).run(replace(shard, documents="others"))
    assert (report.status, report.final) == ("failed", True)
    assert "passkey_long_80 has other documents here than where the sweep was planned" in report.error


def test_other_sources_than_those_of_the_plan_are_refused(planned):
    sweep, shard = planned
    report = worker.Worker(sweep, 0).run(replace(shard, sources="others"))
    assert (report.status, report.final) == ("failed", True)
    assert "are not those that the sweep was planned with" in report.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "oom"),
        (RuntimeError("index out of range"), "failed"),
    ],
)
def test_what_is_raised_is_reported_and_logged(planned, error, status, monkeypatch):
    def raises(**options):
        raise error

    sweep, shard = planned
    monkeypatch.setattr(worker, "simple_evaluate", raises)
    report = worker.Worker(sweep, 0).run(shard)
    assert (report.status, report.final, report.disk_full) == (status, False, False)
    assert report.error == f"{type(error).__name__}: {error}"
    assert "Traceback" in Store(sweep.out).log_path(shard.key).read_text()
    assert Store(sweep.out).read_shard(shard.key) is None
