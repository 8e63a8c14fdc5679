"""A union-find of numbered things: the order of edges, and how they are cut into batches, change nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.labels.disjoint import DisjointSets

edge_lists = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25)


def as_edges(rows):
    return np.array(rows, np.int64).reshape(-1, 2)


def smallest_members(count, edges):
    """Smallest member of each one's set, by relaxing every edge until nothing changes."""
    root = list(range(count))
    changed = True
    while changed:
        changed = False
        for a, b in edges:
            low = min(root[a], root[b])
            changed |= root[a] != low or root[b] != low
            root[a] = root[b] = low
    return root


@given(edge_lists, st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_thing_finds_the_smallest_of_its_set_however_edges_come(edges, batches, random):
    shuffled = [edge[::-1] if random.random() < 0.5 else edge for edge in random.sample(edges, len(edges))]
    sets = DisjointSets(20)
    for batch in np.array_split(as_edges(shuffled), batches):
        sets.join(batch)
    assert sets.roots().tolist() == smallest_members(20, edges)
    assert sets.roots().tolist() == smallest_members(20, edges), "asking changes nothing"


@pytest.mark.parametrize("batches", [1, 7, 1000])
def test_a_chain_of_a_hundred_thousand_is_one_set(batches):
    things = np.random.default_rng(0).permutation(100_000)
    sets = DisjointSets(len(things))
    for batch in np.array_split(np.stack([things[:-1], things[1:]], axis=1), batches):
        sets.join(batch)
    assert (sets.roots() == 0).all()


def test_a_chain_that_comes_from_its_far_end_is_one_set():
    """Each batch puts another root above the last one: the longest paths that there are."""
    sets = DisjointSets(300)
    for k in range(299, 0, -1):
        sets.join(np.array([[k, k - 1]]))
    assert (sets.roots() == 0).all()


@pytest.mark.parametrize("edges", [np.ones((2, 2)), np.ones((2, 3), int), np.ones(2, int)])
def test_edges_of_another_kind_are_refused(edges):
    with pytest.raises(ValueError, match=r"must be integers, \(n, 2\)"):
        DisjointSets(5).join(edges)


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_edge_to_a_thing_that_there_is_not_is_refused(wrong):
    with pytest.raises(ValueError, match=r"but there are 0 to 4: they come from another run"):
        DisjointSets(5).join(as_edges([[3, wrong]]))


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="count=-1 is negative"):
        DisjointSets(-1)
