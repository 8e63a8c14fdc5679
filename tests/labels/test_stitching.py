"""Stitched labels are the whole volume's labels, for every connectivity and any cut into blocks."""

from itertools import product

import dask.array
import numpy as np
import pytest
from dask_image import ndmeasure
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from oracles import same_up_to_renaming, whole_labels
from tessera.labels.components import label_block
from tessera.labels.disjoint import DisjointSets
from tessera.labels.merge import apply_lookup, consecutive_numbering, running_starts
from tessera.labels.seams import Connectivity, Faces, faces_of, neighbour_offsets, seam_edges


def cut(shape, block):
    """Grid index -> slices, in grid order, the last block on each axis clipped."""
    axes = [[slice(k, min(k + b, n)) for k in range(0, n, b)] for n, b in zip(shape, block, strict=True)]
    return {
        index: tuple(axis[k] for axis, k in zip(axes, index, strict=True))
        for index in product(*(range(len(axis)) for axis in axes))
    }


def seams(faces, rims, starts, connectivity):
    """What touches across every seam, as rim numbers."""
    order = {index: k for k, index in enumerate(faces)}
    for a, step in product(faces, neighbour_offsets(connectivity)):
        b = tuple(i + s for i, s in zip(a, step, strict=True))
        if b in faces:
            pairs = seam_edges(faces[a], faces[b], step, connectivity)
            ends = [np.searchsorted(rims[at], pairs[:, k]) + starts[order[at]] for k, at in enumerate((a, b))]
            yield np.stack(ends, axis=1)


def stitch(mask, block, connectivity, rng=None):
    """Cut, label each block alone, keep its faces, join, number, write; edges shuffled where `rng` is given."""
    boxes = cut(mask.shape, block)
    local = {index: label_block(mask[box], connectivity) for index, box in boxes.items()}
    stored = {index: faces_of(labels, connectivity).to_arrays() for index, (labels, _) in local.items()}
    faces = {index: Faces.from_arrays(named) for index, named in stored.items()}
    rims = {index: found.rim() for index, found in faces.items()}
    sizes = [len(rim) for rim in rims.values()]
    starts = running_starts(sizes)
    edges = np.concatenate([np.empty((0, 2), np.int64), *seams(faces, rims, starts, connectivity)])
    if rng is not None:
        edges = rng.permuted(rng.permutation(edges, axis=0), axis=1)
    sets = DisjointSets(sum(sizes))
    for part in np.array_split(edges, 3):
        sets.join(part)
    numbering = consecutive_numbering([count for _, count in local.values()], sizes, sets.roots())
    out = np.zeros(mask.shape, np.uint64)
    for k, (index, box) in enumerate(boxes.items()):
        labels, count = local[index]
        out[box] = apply_lookup(labels, numbering.of(k).lookup(count, rims[index]))
    return out, numbering.total, boxes


def assert_stitched(mask, block, connectivity):
    """Same objects as the whole array's by scipy and by cc3d; ids 1..N, by the first block that has a part of each."""
    out, total, boxes = stitch(mask, block, connectivity)
    expected, count = whole_labels(mask, connectivity.value)
    assert total == count
    assert same_up_to_renaming(out, expected)
    whole, _ = label_block(mask, connectivity)
    assert same_up_to_renaming(out, whole)
    first_seen = np.zeros(total + 1, int)
    for k, box in reversed(list(enumerate(boxes.values()))):
        first_seen[np.unique(out[box])] = k
    assert np.unique(out[out > 0]).tolist() == list(range(1, count + 1))
    assert (np.diff(first_seen[1:]) >= 0).all()


@st.composite
def cut_volumes(draw):
    """A mask and a block shape, down to one voxel thick and up to larger than the mask."""
    shape = draw(array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["random", "percolating", "spirals", "one giant object", "checkerboard"]))
    if kind == "spirals":
        mask = np.stack([np.rot90(spiral(13), k)[: shape[1], : shape[2]] for k in range(shape[0])])
        mask ^= rng.random(mask.shape) < 0.03
    elif kind == "checkerboard":
        mask = np.indices(shape).sum(axis=0) % 2 == 0
    else:
        density = {"random": draw(st.floats(0, 1)), "percolating": rng.choice([0.1, 0.31, 0.59]), "one giant object": 1}
        mask = rng.random(shape) < density[kind]
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


@pytest.mark.parametrize("connectivity", Connectivity)
@pytest.mark.parametrize("block", [(1, 9, 20), (6, 10, 11)])
def test_stitched_labels_are_those_of_dask_image(connectivity, block):
    mask = np.random.default_rng(3).random((6, 18, 22)) < 0.45
    reach = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[connectivity.neighbours]
    structure = ndimage.generate_binary_structure(3, reach)
    structure[[0, 2]] &= not connectivity.per_section
    theirs, count = ndmeasure.label(dask.array.from_array(mask, chunks=block), structure)
    ours, total, _ = stitch(mask, block, connectivity)
    assert total == int(count)
    assert same_up_to_renaming(ours, theirs.compute())
