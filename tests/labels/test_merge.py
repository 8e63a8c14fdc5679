"""Counts, rims and roots become one consecutive numbering, with memory for rim labels alone."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.labels.disjoint import DisjointSets
from tessera.labels.merge import apply_lookup, consecutive_numbering, running_starts


@st.composite
def labelled_blocks(draw):
    """Of each block its count and its rim, and edges between rim numbers."""
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    rims = [sorted(draw(st.sets(st.integers(1, count)))) if count else [] for count in counts]
    numbers = sum(map(len, rims))
    ends = st.integers(0, numbers - 1) if numbers else st.nothing()
    return counts, rims, draw(st.lists(st.tuples(ends, ends), max_size=12)) if numbers else []


def joined(count, edges):
    sets = DisjointSets(count)
    sets.join(np.array(edges, np.int64).reshape(-1, 2))
    return sets.roots()


def expected_names(counts, rims, roots):
    """Final ids one by one: through the blocks, each block's rim first; an object known already keeps its name."""
    names, number, total = {}, 0, 0
    tables = []
    for count, rim in zip(counts, rims, strict=True):
        table = {0: 0}
        for local in rim:
            root = roots[number]
            number += 1
            if root not in names:
                total += 1
                names[root] = total
            table[local] = names[root]
        for local in (i for i in range(1, count + 1) if i not in rim):
            total += 1
            table[local] = total
        tables.append([table[i] for i in range(count + 1)])
    return tables, total


@settings(max_examples=200)
@given(labelled_blocks())
def test_final_ids_are_consecutive_by_block_and_rim(blocks):
    counts, rims, edges = blocks
    sizes = list(map(len, rims))
    roots = joined(sum(sizes), edges)
    numbering = consecutive_numbering(counts, sizes, roots)
    arrays = [np.array(rim, np.uint32) for rim in rims]
    got = [numbering.of(block).lookup(counts[block], arrays[block]) for block in range(len(counts))]
    tables, total = expected_names(counts, rims, roots.tolist())
    assert all(table.dtype == np.uint64 for table in got)
    assert [table.tolist() for table in got] == tables
    assert (numbering.total, numbering.blocks) == (total, len(counts))


def test_memory_follows_the_rim_and_not_the_labels():
    numbering = consecutive_numbering([10**12, 10**12, 3], [1, 2, 0], joined(3, [(0, 2)]))
    assert len(numbering.finals) == 3
    assert numbering.total == 2 * 10**12 + 3 - 1
    assert numbering.of(1).rim.tolist() == [10**12 + 1, 1]
    assert numbering.of(2).lookup(3, np.empty(0, np.uint32)).tolist() == [0, *(2 * 10**12 - 1 + i for i in (1, 2, 3))]


def test_no_blocks_have_no_labels():
    numbering = consecutive_numbering([], [], joined(0, []))
    assert (numbering.total, numbering.blocks) == (0, 0)


def test_a_block_s_share_survives_pickling_and_holds_no_other_block_s():
    numbering = consecutive_numbering([10**6, 2], [10**6, 1], joined(10**6 + 1, [(3, 10**6)]))
    sent = pickle.dumps(numbering.of(1))
    assert len(sent) < 1000
    assert pickle.loads(sent).lookup(2, np.array([2], np.uint32)).tolist() == [0, 10**6 + 1, 4]


def test_starts_are_running_sums():
    assert running_starts([3, 0, 2]).tolist() == [0, 3, 3, 5]
    with pytest.raises(ValueError, match="negative value, -1: blocks would share"):
        running_starts([2, -1])


@pytest.mark.parametrize(
    ("labels", "rims", "roots", "message"),
    [
        ([3], [1, 1], 2, r"1 blocks with 3 labels, 2 with 2 rim labels"),
        ([3, 1], [1, 2], 3, r"2 blocks with 4 labels, 2 with 3 rim labels: the rim is part"),
        ([3, 1], [1, 1], 3, r"3 roots for 2 rim labels"),
    ],
)
def test_counts_of_other_blocks_are_refused(labels, rims, roots, message):
    with pytest.raises(ValueError, match=message):
        consecutive_numbering(labels, rims, joined(roots, []))


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_was_not_numbered_is_refused(block):
    with pytest.raises(ValueError, match=rf"block={block} is not one of this numbering's 2"):
        consecutive_numbering([3, 2], [0, 0], joined(0, [])).of(block)


@pytest.mark.parametrize("rim", [[], [1, 2], [0], [4]])
def test_the_rim_of_another_block_is_refused(rim):
    ids = consecutive_numbering([3], [1], joined(1, [])).of(0)
    with pytest.raises(ValueError, match=r"they are another block's, and its labels would take strangers' ids"):
        ids.lookup(3, np.array(rim, np.uint32))


@given(st.lists(st.integers(0, 4), max_size=30), st.sampled_from([np.uint8, np.uint32, np.uint64]))
def test_lookups_replace_every_label(labels, dtype):
    lookup = np.array([0, 2**60, 7, 2**64 - 1, 9], np.uint64)
    final = apply_lookup(np.array(labels, dtype), lookup)
    assert final.dtype == np.uint64
    assert final.tolist() == [int(lookup[i]) for i in labels]


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
