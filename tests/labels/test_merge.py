"""Edges become one consecutive numbering, whatever their order, with memory for the ids they name alone."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.labels.merge import (
    apply_lookup,
    consecutive_numbering,
    provisional_edges,
    provisional_offsets,
    resolve,
)

NO_EDGES = np.empty((0, 2), np.uint64)


def as_edges(rows):
    return np.array(rows, np.uint64).reshape(-1, 2)


@st.composite
def labelled_blocks(draw):
    """Counts of blocks, and edges between any of their provisional ids."""
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    ids = st.integers(1, sum(counts)) if sum(counts) else st.nothing()
    return counts, draw(st.lists(st.tuples(ids, ids), max_size=12)) if sum(counts) else []


def smallest_members(ids, edges):
    """Smallest id of each one's component, by relaxing every edge until nothing changes."""
    root = {i: i for i in ids}
    changed = True
    while changed:
        changed = False
        for a, b in edges:
            low = min(root[a], root[b])
            changed |= root[a] != low or root[b] != low
            root[a] = root[b] = low
    return root


edge_lists = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=25)


@given(edge_lists)
def test_every_id_finds_the_smallest_of_its_component(edges):
    ids, roots = resolve(as_edges(edges))
    expected = smallest_members({i for edge in edges for i in edge}, edges)
    assert (ids.dtype, roots.dtype) == (np.uint64, np.uint64)
    assert ids.tolist() == sorted(expected)
    assert dict(zip(ids.tolist(), roots.tolist(), strict=True)) == expected


@given(edge_lists, st.randoms(use_true_random=False))
def test_the_order_and_direction_of_edges_change_nothing(edges, random):
    shuffled = [edge[::-1] if random.random() < 0.5 else edge for edge in random.sample(edges, len(edges))]
    for one, other in zip(resolve(as_edges(edges)), resolve(as_edges(shuffled)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ids_past_double_precision_stay_apart():
    ids, roots = resolve(as_edges([[2**64 - 1, 2**64 - 2], [2**53, 2**53 + 1]]))
    assert ids.tolist() == [2**53, 2**53 + 1, 2**64 - 2, 2**64 - 1]
    assert roots.tolist() == [2**53, 2**53, 2**64 - 2, 2**64 - 2]


def test_a_chain_of_a_million_resolves():
    ids = np.random.default_rng(0).permutation(np.arange(1, 1_000_001, dtype=np.uint64))
    _, roots = resolve(np.stack([ids[:-1], ids[1:]], axis=1))
    assert (roots == 1).all()


@settings(max_examples=200)
@given(labelled_blocks())
def test_final_ids_are_consecutive_in_the_order_of_each_smallest_member(blocks):
    counts, edges = blocks
    numbering = consecutive_numbering(counts, as_edges(edges))
    root = smallest_members(range(1, sum(counts) + 1), edges)
    names = {smallest: k for k, smallest in enumerate(sorted(set(root.values())), start=1)}
    got = [numbering.lookup(block) for block in range(len(counts))]
    assert all(table[0] == 0 and table.dtype == np.uint64 for table in got)
    assert [len(table) - 1 for table in got] == counts
    assert np.concatenate([table[1:] for table in got]).tolist() == [names[root[i]] for i in sorted(root)]
    assert numbering.total == len(names)
    assert numbering.blocks == len(counts)


def test_memory_follows_the_edges_and_not_the_labels():
    numbering = consecutive_numbering([10**12, 10**12, 3], as_edges([[1, 10**12 + 1], [5, 2 * 10**12 + 2]]))
    assert len(numbering.absorbed) == 2
    assert numbering.total == 2 * 10**12 + 3 - 2
    assert numbering.lookup(2).tolist() == [0, 2 * 10**12, 5, 2 * 10**12 + 1]


def test_blocks_without_edges_are_numbered_on():
    numbering = consecutive_numbering([2, 0, 3], NO_EDGES)
    assert [numbering.lookup(block).tolist() for block in range(3)] == [[0, 1, 2], [0], [0, 3, 4, 5]]


def test_no_blocks_have_no_labels():
    numbering = consecutive_numbering([], NO_EDGES)
    assert (numbering.total, numbering.blocks) == (0, 0)


def test_a_numbering_survives_pickling():
    numbering = consecutive_numbering([3, 2], as_edges([[3, 4]]))
    again = pickle.loads(pickle.dumps(numbering))
    assert [again.lookup(b).tolist() for b in (0, 1)] == [[0, 1, 2, 3], [0, 3, 4]]


def test_local_edges_become_provisional_ones():
    offsets = provisional_offsets([3, 2, 4])
    edges = provisional_edges(as_edges([[3, 1], [2, 4]]), offsets[0], offsets[2])
    assert edges.dtype == np.uint64
    assert edges.tolist() == [[3, 6], [2, 9]]


@given(st.lists(st.integers(0, 4), max_size=30), st.sampled_from([np.uint8, np.uint32, np.uint64]))
def test_lookups_replace_every_label(labels, dtype):
    lookup = np.array([0, 2**60, 7, 2**64 - 1, 9], np.uint64)
    final = apply_lookup(np.array(labels, dtype), lookup)
    assert final.dtype == np.uint64
    assert final.tolist() == [int(lookup[i]) for i in labels]


@pytest.mark.parametrize("edges", [np.ones((2, 2), np.int64), np.ones((2, 3), np.uint64), np.ones(2, np.uint64)])
def test_edges_of_another_kind_are_refused(edges):
    message = r"must be uint64, \(n, 2\).*2\*\*53"
    with pytest.raises(ValueError, match=message):
        resolve(edges)
    with pytest.raises(ValueError, match=message):
        provisional_edges(edges, 0, 1)
    with pytest.raises(ValueError, match=message):
        consecutive_numbering([9], edges)


@pytest.mark.parametrize("wrong", [0, 6])
def test_an_edge_to_a_label_that_no_block_has_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"name the id {wrong}, but the blocks' counts allow 1 to 5"):
        consecutive_numbering([3, 2], as_edges([[3, wrong]]))


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="negative value, -1: blocks would share"):
        provisional_offsets([2, -1])


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_was_not_numbered_is_refused(block):
    with pytest.raises(ValueError, match=rf"block={block} is not one of this numbering's 2"):
        consecutive_numbering([3, 2], NO_EDGES).lookup(block)


@pytest.mark.parametrize(
    ("labels", "lookup", "message"),
    [
        (np.array([1], np.int64), np.arange(3, dtype=np.uint64), "labels are int64"),
        (np.array([1], np.uint32), np.arange(3), "lookup is int64"),
        (np.array([1], np.uint32), np.ones((3, 1), np.uint64), r"lookup is uint64 of shape \(3, 1\)"),
        (np.array([1], np.uint32), np.ones(0, np.uint64), r"lookup is uint64 of shape \(0,\)"),
        (np.array([3], np.uint32), np.arange(3, dtype=np.uint64), "labels reach 3, but the lookup ends at 2"),
    ],
)
def test_a_lookup_that_does_not_fit_is_refused(labels, lookup, message):
    with pytest.raises(ValueError, match=message):
        apply_lookup(labels, lookup)
