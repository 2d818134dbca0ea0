"""The simulation of the driver runs every shard."""

import pytest

pytest.importorskip("ray")
from mesa_lm.pipelines.development.driver_simulation import simulate


@pytest.mark.slow
def test_every_shard_is_stored(tmp_path):
    found = simulate(shards=31, workers=2, folder=tmp_path / "out")
    assert found["shards"] == 31 and found["driver_cpu_ms_per_shard"] > 0
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 31
