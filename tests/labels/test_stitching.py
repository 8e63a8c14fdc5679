"""Stitched labels are the whole volume's labels, for every connectivity and any cut into blocks."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from oracles import same_up_to_renaming, whole_labels
from tessera.labels.components import label_block
from tessera.labels.merge import apply_lookup, consecutive_numbering, provisional_edges, provisional_offsets
from tessera.labels.seams import Connectivity, Faces, faces_of, neighbour_offsets, seam_edges


def cut(shape, block):
    """Grid index -> slices, in grid order, the last block on each axis clipped."""
    axes = [[slice(k, min(k + b, n)) for k in range(0, n, b)] for n, b in zip(shape, block, strict=True)]
    return {
        index: tuple(axis[k] for axis, k in zip(axes, index, strict=True))
        for index in product(*(range(len(axis)) for axis in axes))
    }


def seams(faces, offsets, connectivity):
    """Provisional edges of every pair of neighbouring blocks."""
    order = {index: k for k, index in enumerate(faces)}
    for a, step in product(faces, neighbour_offsets(connectivity)):
        b = tuple(i + s for i, s in zip(a, step, strict=True))
        if b in faces:
            pairs = seam_edges(faces[a], faces[b], step, connectivity)
            yield provisional_edges(pairs, offsets[order[a]], offsets[order[b]])


def stitch(mask, block, connectivity, rng=None):
    """Cut, label each block alone, keep its faces, join, number, write; edges shuffled where `rng` is given."""
    boxes = cut(mask.shape, block)
    local = {index: label_block(mask[box], connectivity) for index, box in boxes.items()}
    stored = {index: faces_of(labels, connectivity).to_arrays() for index, (labels, _) in local.items()}
    faces = {index: Faces.from_arrays(named) for index, named in stored.items()}
    counts = [count for _, count in local.values()]
    edges = np.concatenate(
        [np.empty((0, 2), np.uint64), *seams(faces, provisional_offsets(counts), connectivity)], axis=0
    )
    if rng is not None:
        edges = rng.permuted(rng.permutation(edges, axis=0), axis=1)
    numbering = consecutive_numbering(counts, edges)
    out = np.zeros(mask.shape, np.uint64)
    for k, (index, box) in enumerate(boxes.items()):
        out[box] = apply_lookup(local[index][0], numbering.lookup(k))
    return out, numbering.total, boxes


def assert_stitched(mask, block, connectivity):
    """Same objects as the whole array's, and ids 1..N in the order in which blocks, then voxels, first show them."""
    out, total, boxes = stitch(mask, block, connectivity)
    expected, count = whole_labels(mask, connectivity.value)
    assert total == count
    assert same_up_to_renaming(out, expected)
    walked = np.concatenate([out[box].ravel() for box in boxes.values()])
    ids, first = np.unique(walked[walked > 0], return_index=True)
    assert ids.tolist() == list(range(1, count + 1))
    assert (np.diff(first) > 0).all()


@st.composite
def cut_volumes(draw):
    """A mask and a block shape, down to one voxel thick and up to larger than the mask."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6))
    density = draw(st.sampled_from([0.15, 0.3, 0.5, 0.75, 1.0]))
    mask = np.random.default_rng(draw(st.integers(0, 2**32))).random(shape) < density
    return mask, draw(st.tuples(*(st.integers(1, n + 1) for n in shape)))


@pytest.mark.parametrize("connectivity", Connectivity)
@settings(max_examples=40, deadline=None)
@given(volume=cut_volumes())
def test_stitched_labels_are_those_of_the_whole_volume(connectivity, volume):
    assert_stitched(*volume, connectivity)


@pytest.mark.parametrize("connectivity", Connectivity)
@settings(max_examples=20, deadline=None)
@given(mask=array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=3).flatmap(lambda s: arrays(bool, s)))
def test_blocks_of_one_voxel_stitch(connectivity, mask):
    assert_stitched(mask, (1, 1, 1), connectivity)


@pytest.mark.parametrize("connectivity", Connectivity)
@settings(max_examples=15, deadline=None)
@given(volume=cut_volumes(), seed=st.integers(0, 2**32))
def test_the_order_of_edges_changes_no_voxel(connectivity, volume, seed):
    expected, total, _ = stitch(*volume, connectivity)
    shuffled, shuffled_total, _ = stitch(*volume, connectivity, np.random.default_rng(seed))
    assert total == shuffled_total
    np.testing.assert_array_equal(shuffled, expected)


def spiral(n):
    """A square spiral, one pixel wide with gaps of one: (n, n), one 4-connected object."""
    mask = np.zeros((n, n), bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    for length in [n - 1, *(k for k in range(n - 1, 0, -2) for _ in "ab")]:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


def hard_masks():
    """Masks whose components cross many blocks, or none."""
    z, y, x = np.indices((4, 13, 13))
    rod = np.zeros((13, 13), bool)
    rod[0, 0] = True
    return {
        "spirals in every section": np.repeat(spiral(13)[None], 4, axis=0),
        "two spirals joined by one voxel": np.stack([spiral(13), rod, spiral(13)[::-1, ::-1], ~spiral(13)]),
        "checkerboard": (z + y + x) % 2 == 0,
        "corners alone": (z % 2 == y % 2) & (y % 2 == x % 2),
        "percolating": np.random.default_rng(7).random((4, 13, 13)) < 0.42,
        "one giant object": np.ones((4, 13, 13), bool),
        "nothing": np.zeros((4, 13, 13), bool),
    }


@pytest.mark.parametrize("block", [(1, 1, 13), (1, 4, 5), (4, 3, 2), (2, 13, 1), (3, 6, 6)])
@pytest.mark.parametrize("connectivity", Connectivity)
@pytest.mark.parametrize("name", hard_masks())
def test_hard_masks_stitch(name, connectivity, block):
    assert_stitched(hard_masks()[name], block, connectivity)


def test_the_spiral_is_one_object():
    assert whole_labels(spiral(13)[None], "section-4")[1] == 1
    assert 0.4 < spiral(13).mean() < 0.65


@pytest.mark.parametrize("connectivity", Connectivity)
def test_a_larger_volume_stitches_at_the_percolation_threshold(connectivity):
    density = {4: 0.593, 8: 0.407, 6: 0.312, 18: 0.137, 26: 0.098}[connectivity.neighbours]
    mask = np.random.default_rng(11).random((20, 60, 70)) < density
    assert_stitched(mask, (7, 19, 32), connectivity)
