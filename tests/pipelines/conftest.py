"""What the tests share that run a small sweep on real Ray."""

import pytest
from ray_nodes import joined, small_sweep, until


@pytest.fixture
def sweep(tmp_path):
    return small_sweep(tmp_path)


@pytest.fixture(scope="module")
def nodes():
    """A cluster of one node with two CPUs, to which a test may add others."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    joined(cluster, 2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=40)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def local_ray(nodes):
    """The cluster, with nothing at work on it."""
    import ray

    until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU"))
