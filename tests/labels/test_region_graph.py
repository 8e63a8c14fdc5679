"""Contacts of blocks add up to those of the whole volume, and are the pairs of voxels that touch."""

from collections import defaultdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tessera.labels.region_graph import BINS, COLUMNS, combined, contacts_of, merged, no_contacts


@st.composite
def labelled(draw):
    """Fragments with ids of all sizes, and probability."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5))
    ids = st.sampled_from([0, 1, 2, 7, 2**40, 2**64 - 1])
    return draw(arrays(np.uint64, shape, elements=ids)), draw(arrays(np.uint8, shape))


def by_voxel(fragments, membrane):
    """(a, b, across) -> probabilities of their contacts, asked voxel by voxel."""
    found = defaultdict(list)
    for at in np.ndindex(fragments.shape):
        for axis in range(3):
            to = tuple(n + (k == axis) for k, n in enumerate(at))
            if to[axis] == fragments.shape[axis]:
                continue
            a, b = sorted((int(fragments[at]), int(fragments[to])))
            if 0 < a != b:
                found[a, b, axis == 0].append(max(int(membrane[at]), int(membrane[to])))
    return found


def blockwise(fragments, membrane, block):
    parts = [no_contacts()]
    for start in product(*(range(0, n, b) for n, b in zip(fragments.shape, block, strict=True))):
        more = tuple(slice(a, min(a + b + 1, n)) for a, b, n in zip(start, block, fragments.shape, strict=True))
        core = [min(b, n - a) for a, b, n in zip(start, block, fragments.shape, strict=True)]
        parts.append(contacts_of(fragments[more], membrane[more], core))
    return merged(parts)


@settings(max_examples=60)
@given(labelled())
def test_contacts_are_the_pairs_of_voxels_that_touch(volume):
    fragments, membrane = volume
    graph, expected = contacts_of(fragments, membrane, fragments.shape), by_voxel(fragments, membrane)
    names = list(zip(graph.a.tolist(), graph.b.tolist(), graph.across.tolist(), strict=True))
    assert names == sorted(expected)
    for row, name in enumerate(names):
        values = np.array(expected[name])
        assert (graph.area[row], graph.total[row]) == (len(values), values.sum())
        assert graph.histogram[row].tolist() == np.bincount(values // 8, minlength=BINS).tolist()
        assert graph.mean()[row] == pytest.approx(values.mean() / 255)
        for share in (0.0, 0.5, 0.9, 1.0):
            true = np.sort(values)[max(int(np.ceil(share * len(values))), 1) - 1] / 255
            assert graph.quantile(share)[row] == pytest.approx(true, abs=1 / BINS)


@settings(max_examples=60)
@given(labelled(), st.tuples(*[st.integers(1, 6)] * 3))
def test_the_graphs_of_blocks_add_up_to_the_whole_volume_s(volume, block):
    fragments, membrane = volume
    whole, pieces = contacts_of(fragments, membrane, fragments.shape), blockwise(fragments, membrane, block)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name), name)


@given(labelled())
def test_contacts_under_other_names_are_those_of_the_renamed_volume(volume):
    fragments, membrane = volume
    names = {0: 0, 1: 5, 2: 5, 7: 3, 2**40: 9, 2**64 - 1: 3}
    renamed = np.vectorize(names.get, otypes=[np.uint64])(fragments)
    graph = contacts_of(fragments, membrane, fragments.shape)
    a, b = (np.array([names[int(i)] for i in ids], np.uint64) for ids in (graph.a, graph.b))
    ours, theirs = combined(graph, a, b), contacts_of(renamed, membrane, renamed.shape)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)


def test_a_block_with_two_planes_more_is_refused():
    fragments = np.ones((2, 2, 4), np.uint64)
    with pytest.raises(ValueError, match="at most one plane more on each axis"):
        contacts_of(fragments, np.zeros(fragments.shape, np.uint8), (2, 2, 2))


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"share=1.5 is none.*Try 0.5"):
        no_contacts().quantile(1.5)
