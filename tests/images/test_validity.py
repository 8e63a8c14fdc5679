"""Promises about validity: a voxel's place in the volume decides, whatever box is asked for."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.images.validity import ChunkMap, NearestAxis, nearest_axis, valid_in

SHAPE = (5, 13, 17)


@st.composite
def chunk_maps(draw: st.DrawFn, region: Box | None = None) -> ChunkMap:
    """A map of a region of a volume of `SHAPE`, with chunks of any size and any of them missing."""
    region = region or Box.whole(SHAPE)
    chunk = tuple(draw(st.integers(1, n + 2)) for n in SHAPE)
    first = tuple(a // c for a, c in zip(region.start, chunk, strict=True))
    stop = [-(-b // c) for b, c in zip(region.stop, chunk, strict=True)]
    counts = tuple(b - a for a, b in zip(first, stop, strict=True))
    flags = draw(st.lists(st.booleans(), min_size=int(np.prod(counts)), max_size=int(np.prod(counts))))
    return ChunkMap(chunk, first, np.array(flags).reshape(counts))


def voxels_of(stored: ChunkMap) -> np.ndarray:
    """What a map says of every voxel of the volume, chunk by chunk: the oracle."""
    voxels = np.zeros(SHAPE, bool)
    for index in zip(*np.nonzero(stored.stored), strict=True):
        start = [(int(i) + a) * c for i, a, c in zip(index, stored.first, stored.chunk, strict=True)]
        voxels[tuple(slice(s, s + c) for s, c in zip(start, stored.chunk, strict=True))] = True
    return voxels


@given(
    stored=chunk_maps(),
    invalid=st.sets(st.integers(0, SHAPE[0] - 1)),
    block=st.tuples(*(st.integers(1, n + 3) for n in SHAPE)),
    seed=st.integers(0, 99),
)
def test_a_box_assembled_from_any_partition_is_valid_where_the_whole_is(
    stored: ChunkMap, invalid: set[int], block: tuple[int, int, int], seed: int
) -> None:
    mask = np.random.default_rng(seed).random((3, 7, 17)) < 0.5
    axes = [
        nearest_axis(4.0, 0.0, n, 4.0 * n / m, 4.0 * (n / m - 1) / 2, m) for n, m in zip(SHAPE, mask.shape, strict=True)
    ]

    def valid(box: Box) -> np.ndarray:
        places = [axis.places(a, b) for axis, a, b in zip(axes, box.start, box.stop, strict=True)]
        return valid_in(box, invalid, stored, mask[np.ix_(*places)])

    whole = valid(Box.whole(SHAPE))
    assembled = np.zeros(SHAPE, bool)
    for _, box in BlockGrid(SHAPE, block).boxes():
        assembled[box.slices] = valid(box)
    np.testing.assert_array_equal(assembled, whole)
    expected = voxels_of(stored)
    expected[sorted(invalid)] = False
    assert not (whole & ~expected).any(), "the mask takes away, and adds nothing"
    np.testing.assert_array_equal(valid_in(Box.whole(SHAPE), invalid, stored), expected)


@given(stored=chunk_maps(Box((1, 2, 3), (5, 13, 16))), block=st.tuples(*(st.integers(1, n) for n in SHAPE)))
def test_boxes_that_touch_no_stored_chunk_are_told_without_looking_at_voxels(
    stored: ChunkMap, block: tuple[int, int, int]
) -> None:
    region = Box((1, 2, 3), (5, 13, 16))
    grid = BlockGrid(region.shape, block)
    spans = [
        [(a + start, b + start) for a, b in (axis.bounds(i) for i in range(axis.count))]
        for axis, start in zip(grid.axes, region.start, strict=True)
    ]
    expected = [stored.of(box.shifted(region.start)).any() for _, box in grid.boxes()]
    assert stored.any_in(spans).ravel().tolist() == expected


@given(stored=chunk_maps())
def test_bare_sections_are_those_without_any_stored_voxel(stored: ChunkMap) -> None:
    voxels, sections = voxels_of(stored), range(SHAPE[0])
    bare = stored.sections_without(sections)
    assert bare == {z for z in sections if not voxels[z].any()}
    others = [z for z in sections if z not in bare]
    assert stored.without_sections(bare, sections) == bool(voxels[others].all())


@given(
    size=st.integers(1, 60),
    mask_size=st.integers(1, 60),
    shift=st.integers(-30, 30),
    start=st.integers(0, 200),
    length=st.integers(1, 50),
)
def test_the_nearest_voxel_of_a_mask_is_that_of_exact_arithmetic(
    size: int, mask_size: int, shift: int, start: int, length: int
) -> None:
    """Sizes in tenths of a nanometer: none of them is exact in binary."""
    axis = NearestAxis((size / 10) / (mask_size / 10), (shift / 10) / (mask_size / 10), 10**6)
    exact = [floor(Fraction(size * i + shift, mask_size) + Fraction(1, 2)) for i in range(start, start + length)]
    expected = [max(0, i) for i in exact]
    assert axis.places(start, start + length).tolist() == expected
    assert axis.span(start, start + length) == (expected[0], expected[-1] + 1)


def test_a_level_of_a_pyramid_falls_on_the_voxels_it_was_made_of() -> None:
    """Level 1 of 4 nm voxels: 8 nm, its voxel 0 centred between the first two."""
    halved = nearest_axis(4.0, 0.0, 7, 8.0, 2.0, 4)
    assert halved.places(0, 7).tolist() == [0, 0, 1, 1, 2, 2, 3]
    doubled = nearest_axis(8.0, 2.0, 4, 4.0, 0.0, 7)
    assert doubled.places(0, 4).tolist() == [1, 3, 5, 6], "half-way the greater one, at the edge the last"
    assert nearest_axis(4.0, 0.0, 9, 4.03, 1.0, 9).places(0, 9).tolist() == list(range(9)), "one grid, said loosely"


@pytest.mark.parametrize(
    ("mask_size", "origin", "extent"),
    [(8.0, 2.0, 25), (4.0, 0.0, 25), (4.0, 0.0, 102), (4.0, 40.0, 100), (4.0, -8.0, 100)],
    ids=["too short", "wrong scale", "too long", "shifted", "shifted back"],
)
def test_a_mask_of_another_extent_is_told_by_both_sides_edges(mask_size: float, origin: float, extent: int) -> None:
    with pytest.raises(ValueError, match=r"nm, where the volume reaches from -2 to 398 nm"):
        nearest_axis(4.0, 0.0, 100, mask_size, origin, extent)
    assert nearest_axis(4.0, 0.0, 100, 8.0, 2.0, 50).places(98, 100).tolist() == [49, 49]
