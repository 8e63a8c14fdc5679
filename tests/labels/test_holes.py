"""Holes are those that one object alone encloses, for any cut into blocks; the oracle looks at the whole array."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.labels.disjoint import DisjointSets
from tessera.labels.holes import (
    Surroundings,
    background_connectivity,
    background_pieces,
    cleared,
    no_surroundings,
    surroundings_of,
)
from tessera.labels.merge import running_starts
from tessera.labels.seams import faces_of, neighbour_offsets, seam_edges

SHAPE = (4, 6, 7)


def filled_whole(labels, valid, per_section):
    """Each piece of background in turn, with the voxels that touch it, by scipy."""
    cross = ndimage.generate_binary_structure(3, 1)
    if per_section:
        cross[[0, 2]] = False
    out, (pieces, count) = labels.copy(), ndimage.label(labels == 0, cross)
    edge = np.pad(
        np.zeros([n - 2 if k or not per_section else n for k, n in enumerate(labels.shape)], bool),
        [(0, 0) if per_section and k == 0 else (1, 1) for k in range(3)],
        constant_values=True,
    )
    for number in range(1, count + 1):
        piece = pieces == number
        around = set(labels[ndimage.binary_dilation(piece, cross) & ~piece].tolist())
        if len(around) == 1 and not (piece & (edge | ~valid)).any():
            out[piece] = around.pop()
    return out


def filled_by_blocks(labels, valid, per_section, block):
    """The same, block by block: all pieces of all blocks are put together by what touches across seams."""
    connectivity, grid = background_connectivity(per_section=per_section), BlockGrid(labels.shape, block)
    found = {}
    for index, box in grid.boxes():
        seen = box.grown((0 if per_section else 1, 1, 1)).clipped(Box.whole(labels.shape))
        pieces, count = background_pieces(labels[box.slices], connectivity)
        around = surroundings_of(
            pieces, count, labels[seen.slices], valid[box.slices], box, seen, labels.shape, connectivity
        )
        found[index] = pieces, Surroundings.from_arrays(around.to_arrays()), faces_of(pieces, connectivity)
    starts = running_starts([len(around.voxels) - 1 for _, around, _ in found.values()])
    sets = DisjointSets(int(starts[-1]))
    for index, step in product(found, neighbour_offsets(connectivity)):
        other = grid.neighbour(index, step)
        if other is not None:
            pairs = seam_edges(found[index][2], found[other][2], step, connectivity).astype(np.int64)
            sets.join(pairs - 1 + [starts[index], starts[other]])
    roots, total, out = sets.roots(), no_surroundings(int(starts[-1])), labels.copy()
    wholes = [np.append(0, roots[starts[index] : starts[index + 1]] + 1) for index in found]
    for index, (_, around, _) in found.items():
        around.gather_into(total, wholes[index])
    for index, box in grid.boxes():
        own = total.fill[wholes[index]][found[index][0]].astype(labels.dtype)
        out[box.slices] = np.where(out[box.slices] == 0, own, out[box.slices])
    return out, total


@settings(max_examples=150)
@given(
    arrays(np.uint64, SHAPE, elements=st.sampled_from([0, 1, 1, 1, 2])),
    st.booleans(),
    st.tuples(*(st.integers(1, n) for n in SHAPE)),
    st.integers(0, 3),
)
def test_holes_filled_over_blocks_are_those_of_the_whole_volume(labels, per_section, block, unknown):
    valid = np.ones(SHAPE, bool)
    valid[:, :, :unknown] = False
    out, total = filled_by_blocks(labels, valid, per_section, block)
    np.testing.assert_array_equal(out, filled_whole(labels, valid, per_section))
    assert total.voxels.sum() == np.count_nonzero(labels == 0)
    assert total.voxels[total.fill > 0].sum() == np.count_nonzero(out != labels)


@pytest.mark.parametrize("per_section", [True, False])
def test_a_cavity_across_many_blocks_is_filled_and_what_two_enclose_is_not(per_section):
    labels = np.zeros((6, 9, 18), np.uint32)
    labels[:, 1:8, 1:8], labels[:, 1:8, 10:14], labels[:, 1:8, 14:17] = 3, 4, 5
    labels[1:5, 3:6, 3:6] = labels[1:5, 3:6, 12:16] = 0  # inside 3; between 4 and 5
    expected = labels.copy()
    expected[1:5, 3:6, 3:6] = 3
    for block in ((6, 9, 18), (1, 1, 1), (2, 4, 5)):
        out, _ = filled_by_blocks(labels, np.ones(labels.shape, bool), per_section, block)
        np.testing.assert_array_equal(out, expected)


def test_a_tunnel_is_a_hole_of_its_sections_and_none_of_the_volume():
    labels = np.full((3, 5, 5), 7, np.uint16)
    labels[:, 2, 2] = 0
    valid = np.ones(labels.shape, bool)
    # Rows and columns at the edge belong to the object; on z the tunnel leaves the volume.
    assert (filled_by_blocks(labels, valid, True, (2, 2, 2))[0] == 7).all()
    np.testing.assert_array_equal(filled_by_blocks(labels, valid, False, (2, 2, 2))[0], labels)


@given(arrays(np.uint16, SHAPE, elements=st.integers(0, 4)), st.sets(st.integers(1, 6)))
def test_what_is_cleared_is_what_was_named(labels, removed):
    names = np.array(sorted(removed), np.uint64)
    np.testing.assert_array_equal(cleared(labels, names), np.where(np.isin(labels, list(removed)), 0, labels))
