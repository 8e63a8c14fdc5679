"""Shares of a cluster: what can never run is refused, and what runs leaves room for the data."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tessera.engine.placement import ClusterSize, NodeSize, block_pool, memory_share, train_share


def test_more_workers_than_the_cluster_can_ever_give_are_refused_with_how_many_fit() -> None:
    with pytest.raises(ValueError, match=r"workers=9 is more than this cluster's 4 CPUs.*--resources.workers 6"):
        train_share((9, 9), "auto", ClusterSize(4, 0, 4))
    assert train_share((6, 6), "auto", ClusterSize(4, 0, 4)).cpus == 0.5


@pytest.mark.parametrize(
    ("workers", "cluster", "told"),
    [
        ((9, 12), ClusterSize(4, 0, 4), r"workers=9 is more than this cluster's 4 CPUs.*--resources.workers 6"),
        ((3, 4), ClusterSize(4, 0, 4), r"workers=3-4: .*2 workers fit into this cluster's 1 nodes of 4 CPUs"),
        ((1, 2), ClusterSize(2, 0, 2), r"0 workers fit .*Try a fixed number, --resources.workers 1"),
    ],
)
def test_a_range_whose_least_does_not_fit_is_refused(workers: tuple[int, int], cluster: ClusterSize, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        train_share(workers, "auto", cluster)


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"use_gpu=yes with 2 workers, but this cluster has 1 GPUs.*auto"):
        train_share((2, 4), "yes", ClusterSize(8, 1, 8))
    assert train_share((1, 4), "auto", ClusterSize(8, 1, 8)).gpu
    assert not train_share((2, 4), "auto", ClusterSize(8, 1, 8)).gpu


@given(st.integers(3, 200), st.integers(1, 6), st.integers(1, 20), st.integers(1, 60))
def test_elastic_workers_never_fill_a_node(node_cpus: int, nodes: int, least: int, more: int) -> None:
    """Ray Train puts as many on a node as fit; Ray Data must find a CPU beside them."""
    try:
        share = train_share((least, least + more), "auto", ClusterSize(node_cpus * nodes, 0, node_cpus))
    except ValueError:
        assume(False)
    on_one = node_cpus // share.cpus
    assert node_cpus - on_one * share.cpus >= 1
    assert on_one * nodes >= least
    assert (8 * share.cpus).is_integer(), "sums of it are exact"


@pytest.mark.parametrize(
    ("cluster", "workers", "cpus", "gpus"),
    [
        (ClusterSize(2, 0, 2), 1, 2.0, 0.0),
        (ClusterSize(8, 0, 2), 4, 2.0, 0.0),
        (ClusterSize(64, 0, 16), 8, 8.0, 0.0),
        (ClusterSize(24, 0, 16, (NodeSize(16), NodeSize(8))), 3, 8.0, 0.0),
        (ClusterSize(32, 4, 32), 4, 8.0, 1.0),
        (ClusterSize(72, 8, 64, (NodeSize(64), NodeSize(8, 8))), 8, 1.0, 1.0),
        (ClusterSize(68, 8, 64, (NodeSize(64), NodeSize(4, 8))), 8, 0.5, 1.0),
    ],
    ids=[
        "laptop",
        "small nodes",
        "large nodes",
        "unequal nodes",
        "gpus",
        "gpus beside a node of cpus",
        "more gpus than cpus",
    ],
)
def test_networks_fill_the_cores_without_sharing_them(
    cluster: ClusterSize, workers: int, cpus: float, gpus: float
) -> None:
    """One per GPU; else one per 8 cores and node. Each fits on a node that has what it wants."""
    pool = block_pool(0, cluster)
    assert (pool.workers, pool.cpus, pool.gpus) == (workers, cpus, gpus)
    assert pool.workers * pool.cpus <= cluster.cpus


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 60))
def test_all_workers_run_at_once_and_no_node_has_more_threads_than_cores(nodes: list[int], asked: int) -> None:
    cluster = ClusterSize(sum(nodes), 0, max(nodes), tuple(NodeSize(cpus) for cpus in nodes))
    assume(asked <= cluster.cpus)
    pool = block_pool(asked, cluster)
    assert pool.cpus >= 1
    assert pool.workers <= sum(cpus // pool.cpus for cpus in nodes), "one that never starts would be waited for"
    assert asked in (0, pool.workers)


def test_workers_of_a_node_share_its_memory() -> None:
    nodes = (NodeSize(16, memory=100), NodeSize(8, memory=90), NodeSize(0, memory=10))
    cluster = ClusterSize(24, 0, 16, nodes)
    assert memory_share(block_pool(3, cluster), cluster) == (100, 2)
    assert memory_share(block_pool(1, cluster), cluster) == (100, 1)
