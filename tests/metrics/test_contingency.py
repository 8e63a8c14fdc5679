"""Overlap counts agree with counting by hand, in one piece or block by block."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.metrics.contingency import Contingency, count_overlaps, merge_tables

# Ids of a stitched volume may be anything: the largest ones must not round on their way.
ids = st.sampled_from([0, 1, 2, 3, 2**53 + 1, 2**64 - 1])
pairs_of_ids = st.lists(st.tuples(ids, ids), max_size=40)


def _arrays(pairs):
    return np.array(pairs, np.uint64).reshape(-1, 2).T


def _counted(table):
    listed = zip(table.truth.tolist(), table.proposal.tolist(), strict=True)
    return dict(zip(listed, table.count.tolist(), strict=True))


@given(pairs_of_ids)
def test_every_pair_is_counted_once(pairs):
    table = count_overlaps(*_arrays(pairs))
    assert _counted(table) == Counter(pairs)
    assert table.total == len(pairs)


@given(pairs_of_ids, st.data())
def test_tables_of_blocks_add_up_to_the_whole_in_any_order(pairs, data):
    cut = data.draw(st.integers(0, len(pairs)))
    blocks = [count_overlaps(*_arrays(part)) for part in (pairs[cut:], pairs[:cut])]
    merged = merge_tables([Contingency.from_arrays(block.to_arrays()) for block in blocks])
    whole = count_overlaps(*_arrays(pairs))
    for name, array in whole.to_arrays().items():
        np.testing.assert_array_equal(merged.to_arrays()[name], array)
        assert merged.to_arrays()[name].dtype == array.dtype


@given(pairs_of_ids)
def test_sizes_are_the_margins_of_the_table(pairs):
    table = count_overlaps(*_arrays(pairs))
    for side, (found, sizes) in enumerate((table.truth_sizes, table.proposal_sizes)):
        assert dict(zip(found.tolist(), sizes.tolist(), strict=True)) == Counter(pair[side] for pair in pairs)


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"pair them pixel by pixel.*same pixels"):
        count_overlaps(np.zeros(3, int), np.zeros(4, int))


def test_negative_ids_are_refused():
    with pytest.raises(ValueError, match=r"proposal holds the negative id -1: ids are names of segments, 0 is none"):
        count_overlaps(np.array([1]), np.array([-1]))
