"""Mirror extrapolation against numpy's own reflection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.mirror import mirror_indices, read_mirrored


def reflected(volume: NDArray[np.generic], box: Box) -> NDArray[np.generic]:
    """The oracle: pad the whole volume far enough, then slice."""
    pads = [(max(0, -a), max(0, b - n)) for a, b, n in zip(box.start, box.stop, volume.shape, strict=True)]
    padded = np.pad(volume, pads, mode="reflect")
    return padded[box.shifted([low for low, _ in pads]).slices]


@st.composite
def volumes_and_boxes(draw: st.DrawFn) -> tuple[NDArray[np.int32], Box]:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6))
    start = tuple(draw(st.integers(-20, 20)) for _ in shape)
    stop = tuple(a + draw(st.integers(1, 25)) for a in start)
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape), Box(start, stop)


@given(volumes_and_boxes())
def test_any_box_reads_as_from_a_reflected_volume(case: tuple[NDArray[np.int32], Box]) -> None:
    volume, box = case
    read = read_mirrored(lambda inside: volume[inside.slices], volume.shape, box)
    assert read.dtype == volume.dtype
    np.testing.assert_array_equal(read, reflected(volume, box))


@given(volumes_and_boxes())
def test_one_read_covers_exactly_the_mirrored_voxels(case: tuple[NDArray[np.int32], Box]) -> None:
    volume, box = case
    asked: list[Box] = []

    def read(inside: Box) -> NDArray[np.int32]:
        asked.append(inside)
        return volume[inside.slices]

    voxels = read_mirrored(read, volume.shape, box)
    (inside,) = asked
    assert Box.whole(volume.shape).contains(inside)
    # The covering box is tight: each of its faces holds a voxel of the result.
    for axis, size in enumerate(volume.shape):
        met = np.unique(np.unravel_index(voxels, volume.shape)[axis])
        assert (inside.start[axis], inside.stop[axis]) == (met[0], met[-1] + 1), size


def test_a_box_inside_is_the_readers_own_view() -> None:
    volume = np.zeros((4, 8))
    voxels = read_mirrored(lambda inside: volume[inside.slices], volume.shape, Box((1, 2), (3, 8)))
    assert np.shares_memory(voxels, volume)


def test_channels_behind_the_box_axes_stay() -> None:
    volume = np.arange(24).reshape(3, 4, 2)
    voxels = read_mirrored(lambda inside: volume[inside.slices], (3, 4), Box((-1, 0), (3, 6)))
    np.testing.assert_array_equal(voxels, np.pad(volume, ((1, 0), (0, 2), (0, 0)), mode="reflect"))


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 9))
def test_indices_reflect_without_repeating_the_edge(start: int, count: int, extent: int) -> None:
    indices = mirror_indices(start, start + count, extent)
    oracle = np.pad(np.arange(extent), 120, mode="reflect")[start + 120 : start + 120 + count]
    assert indices.tolist() == oracle.tolist()


@pytest.mark.parametrize("extent", [0, -1])
def test_an_empty_axis_is_an_error(extent: int) -> None:
    with pytest.raises(ValueError, match="nothing to mirror"):
        mirror_indices(0, 4, extent)


def test_an_empty_volume_is_never_read() -> None:
    with pytest.raises(ValueError, match="an axis of 0 voxels"):
        read_mirrored(lambda inside: np.zeros((0, 3)), (0, 3), Box((0, 0), (2, 2)))


def test_an_empty_box_is_an_error() -> None:
    with pytest.raises(ValueError, match="is empty, there is nothing to read"):
        read_mirrored(lambda inside: np.zeros(inside.shape), (3, 3), Box((0, 2), (3, 2)))


def test_axes_that_disagree_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"has 2 axes and the volume \(3, 3, 3\) has 3"):
        read_mirrored(lambda inside: np.zeros(inside.shape), (3, 3, 3), Box((0, 0), (2, 2)))


def test_a_reader_that_returns_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"reader returned shape \(3, 3\) for \[0:2, 0:3\]"):
        read_mirrored(lambda inside: np.zeros((3, 3)), (3, 3), Box((0, 0), (2, 3)))
