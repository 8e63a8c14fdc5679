"""Shares of a cluster: what can never run is refused, and what runs leaves room for the data."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tessera.engine.placement import ClusterSize, train_share


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
