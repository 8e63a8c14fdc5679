"""Edges across a seam are the voxel pairs that touch there, for face, edge and corner neighbours."""

import io
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from tessera.labels.seams import Connectivity, Faces, faces_of, neighbour_offsets, seam_edges

STEPS = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
sides = st.integers(1, 4)


@st.composite
def neighbouring_blocks(draw):
    """Two labelled blocks, agreeing in extent where their offset is 0, and the offset."""
    offset = draw(st.sampled_from(STEPS))
    shape_a = draw(st.tuples(sides, sides, sides))
    shape_b = tuple(draw(sides) if step else n for step, n in zip(offset, shape_a, strict=True))
    ids = st.integers(0, 3)
    return draw(arrays(np.uint32, shape_a, elements=ids)), draw(arrays(np.uint32, shape_b, elements=ids)), offset


def edges_by_voxel(a, b, offset, connectivity):
    """Every voxel pair at every distance, asked one by one."""
    origin = [{-1: -nb, 0: 0, 1: na}[o] for o, na, nb in zip(offset, a.shape, b.shape, strict=True)]
    edges = set()
    for p, q in product(np.argwhere(a), np.argwhere(b)):
        if tuple((q + origin - p).tolist()) in connectivity.offsets:
            edges.add((int(a[tuple(p)]), int(b[tuple(q)])))
    return sorted(edges)


@pytest.mark.parametrize("connectivity", Connectivity)
@settings(max_examples=60, deadline=None)
@given(blocks=neighbouring_blocks())
def test_edges_are_the_voxel_pairs_that_touch(connectivity, blocks):
    a, b, offset = blocks
    edges = seam_edges(faces_of(a), faces_of(b), offset, connectivity)
    assert edges.dtype == np.uint64
    assert edges.shape[1:] == (2,)
    assert [tuple(row) for row in edges.tolist()] == edges_by_voxel(a, b, offset, connectivity)


@pytest.mark.parametrize("connectivity", Connectivity)
def test_voxel_steps_are_those_of_scipy(connectivity):
    reach = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}[connectivity.neighbours]
    structure = ndimage.generate_binary_structure(3, reach)
    if connectivity.per_section:
        structure[[0, 2]] = False
    expected = [tuple(step) for step in (np.argwhere(structure) - 1).tolist() if any(step)]
    assert list(connectivity.offsets) == expected
    assert len(expected) == connectivity.neighbours


@pytest.mark.parametrize("connectivity", Connectivity)
def test_each_pair_of_neighbouring_blocks_is_checked_from_one_side_only(connectivity):
    half = neighbour_offsets(connectivity)
    opposite = [tuple(-k for k in step) for step in half]
    assert not set(half) & set(opposite)
    assert set(half) | set(opposite) == set(connectivity.offsets)


@pytest.mark.parametrize("connectivity", [Connectivity.SECTION_4, Connectivity.SECTION_8])
@pytest.mark.parametrize("offset", [step for step in STEPS if step[0]])
def test_sections_never_join_across_z(connectivity, offset):
    faces = faces_of(np.ones((2, 2, 2), np.uint32), connectivity)
    assert seam_edges(faces, faces, offset, connectivity).shape == (0, 2)


def test_edges_come_once_and_in_order():
    a = np.array([[[3, 1, 3, 1]]], np.uint32)
    b = np.array([[[1, 2, 1, 2]]], np.uint32)
    edges = seam_edges(faces_of(a), faces_of(b), (0, 1, 0), Connectivity.SECTION_8)
    assert edges.tolist() == [[1, 1], [1, 2], [3, 1], [3, 2]]


def test_seen_from_the_other_side_edges_are_mirrored():
    rng = np.random.default_rng(1)
    a, b = (faces_of(rng.integers(0, 9, (4, 5, 6)).astype(np.uint16)) for _ in "ab")
    there = seam_edges(a, b, (0, 1, -1), Connectivity.VOLUME_26)
    back = seam_edges(b, a, (0, -1, 1), Connectivity.VOLUME_26)
    assert sorted(there.tolist()) == sorted(row[::-1] for row in back.tolist())
    assert len(there) > 0


def test_ids_past_32_bits_survive():
    big = 2**63 + 5
    labels = np.full((1, 1, 1), big, np.uint64)
    assert seam_edges(faces_of(labels), faces_of(labels), (0, 0, 1), Connectivity.VOLUME_6).tolist() == [[big, big]]


def test_faces_do_not_keep_the_block_alive():
    labels = np.arange(60, dtype=np.uint32).reshape(3, 4, 5)
    faces = faces_of(labels)
    before = {key: plane.copy() for key, plane in faces.planes.items()}
    labels[:] = 0
    for key, plane in before.items():
        np.testing.assert_array_equal(faces.planes[key], plane)
    assert faces.nbytes == 4 * 2 * (4 * 5 + 3 * 5 + 3 * 4)


def test_faces_of_a_section_connectivity_leave_the_z_planes_out():
    labels = np.ones((16, 4, 5), np.uint32)
    assert faces_of(labels, Connectivity.SECTION_4).nbytes == 4 * 2 * (16 * 5 + 16 * 4)
    assert faces_of(labels, Connectivity.VOLUME_6).nbytes == faces_of(labels).nbytes


@pytest.mark.parametrize("connectivity", [None, Connectivity.SECTION_8])
def test_faces_survive_a_file(connectivity):
    labels = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    faces = faces_of(labels, connectivity)
    file = io.BytesIO()
    np.savez(file, **faces.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        again = Faces.from_arrays(dict(stored))
    assert again.shape == faces.shape
    assert again.planes.keys() == faces.planes.keys()
    for key, plane in faces.planes.items():
        np.testing.assert_array_equal(again.planes[key], plane)
        assert again.planes[key].dtype == plane.dtype


def test_faces_without_shape_are_refused():
    with pytest.raises(ValueError, match=r"have no 'shape'.*to_arrays"):
        Faces.from_arrays({"z_low": np.zeros((2, 2), np.uint32)})


def test_a_plane_of_another_block_is_refused():
    arrays_ = faces_of(np.ones((2, 3, 4), np.uint32)).to_arrays()
    arrays_["y_low"] = arrays_["z_low"]
    with pytest.raises(ValueError, match=r"plane y_low has shape \(3, 4\), but a block of \(2, 3, 4\) has \(2, 4\)"):
        Faces.from_arrays(arrays_)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones((3, 3), np.uint32), r"shape \(3, 3\): a block is \(z, y, x\).*np.newaxis"),
        (np.ones((1, 3, 3), np.int64), r"labels are int64: ids are unsigned.*astype\('uint32'\)"),
        (np.ones((1, 3, 3), np.float32), r"labels are float32: ids are unsigned"),
        (np.ones((1, 0, 3), np.uint32), r"shape \(1, 0, 3\), without a voxel"),
    ],
)
def test_bad_labels_are_refused_with_a_reason(labels, message):
    with pytest.raises(ValueError, match=message):
        faces_of(labels)


@pytest.mark.parametrize("offset", [(0, 0, 0), (0, 0, 2), (0, 1)])
def test_a_step_that_leads_to_no_neighbour_is_refused(offset):
    faces = faces_of(np.ones((2, 2, 2), np.uint32))
    with pytest.raises(ValueError, match="is no step to a neighbouring block"):
        seam_edges(faces, faces, offset, Connectivity.VOLUME_6)


def test_blocks_that_differ_along_their_seam_are_refused():
    a, b = faces_of(np.ones((2, 2, 2), np.uint32)), faces_of(np.ones((2, 3, 2), np.uint32))
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 3, 2\) at offset \(0, 0, 1\) differ along their seam"):
        seam_edges(a, b, (0, 0, 1), Connectivity.VOLUME_6)


def test_joining_across_a_z_plane_that_was_not_kept_is_refused():
    faces = faces_of(np.ones((2, 2, 2), np.uint32), Connectivity.SECTION_4)
    with pytest.raises(ValueError, match=r"the z plane was not kept.*all planes"):
        seam_edges(faces, faces, (1, 0, 0), Connectivity.VOLUME_6)
