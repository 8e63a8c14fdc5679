"""Overlap counts agree with counting by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.metrics.contingency import count_overlaps

ids = st.integers(0, 6)


@given(st.lists(st.tuples(ids, ids), max_size=40))
def test_every_pair_is_counted_once(pairs):
    truth, proposal = np.array(pairs, np.int32).reshape(-1, 2).T
    table = count_overlaps(truth, proposal)
    listed = zip(table.truth.tolist(), table.proposal.tolist(), strict=True)
    assert dict(zip(listed, table.count.tolist(), strict=True)) == Counter(pairs)
    assert table.total == len(pairs)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=40))
def test_sizes_are_the_margins_of_the_table(pairs):
    truth, proposal = np.array(pairs, np.int32).T
    table = count_overlaps(truth, proposal)
    assert table.truth_sizes.tolist() == np.bincount(truth).tolist()
    assert table.proposal_sizes.tolist() == np.bincount(proposal).tolist()


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"pair them pixel by pixel.*same pixels"):
        count_overlaps(np.zeros(3, int), np.zeros(4, int))
