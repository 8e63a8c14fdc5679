"""Resampled voxels are pure functions of their index: any cut gives the same, and independent programs agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import map_coordinates

from tessera.geometry.boxes import Box
from tessera.images.resample import ResampledAxis, resample

SHAPE = (5, 33, 40)
STORED = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
RATIOS = [(1.0, 1.5, 1.5), (0.6, 2.0, 3.7), (2.3, 0.41, 1.0), (1.0, 8.0, 1.1)]


def _axes(ratios: tuple[float, ...], shape: tuple[int, ...] = SHAPE) -> list[ResampledAxis]:
    return [ResampledAxis(n, ratio) for n, ratio in zip(shape, ratios, strict=True)]


def _part(box: Box, axes: list[ResampledAxis], stored: np.ndarray = STORED) -> np.ndarray:
    reach = [axis.reach(a, b) for axis, a, b in zip(axes, box.start, box.stop, strict=True)]
    return resample(stored[tuple(slice(a, b) for a, b in reach)], axes, box.start, box.stop)


@settings(max_examples=60)
@given(st.sampled_from(RATIOS), st.data())
def test_a_part_equals_the_whole_s_to_the_last_bit(ratios: tuple[float, ...], data: st.DataObject) -> None:
    axes = _axes(ratios)
    shape = [axis.resampled_extent for axis in axes]
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
    box = Box(tuple(starts), tuple(stops))
    for stored in (STORED, STORED.astype(np.float32) / 7):
        whole = _part(Box.whole(shape), axes, stored)
        np.testing.assert_array_equal(_part(box, axes, stored), whole[box.slices])


@pytest.mark.parametrize(("ratio", "extent"), [(1.5, 48), (2.0, 48), (4.0, 48), (0.5, 24), (0.75, 48)])
def test_sections_equal_pillow_s_bilinear_ones(ratio: float, extent: int) -> None:
    """Pillow widens its triangle in the same way, where the extents divide."""
    stored = np.random.default_rng(1).random((extent, extent), np.float32)
    axes = _axes((ratio, ratio), stored.shape)
    wanted = axes[0].resampled_extent
    assert wanted * ratio == extent
    theirs = np.asarray(Image.fromarray(stored).resize((wanted, wanted), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(_part(Box.whole((wanted, wanted)), axes, stored), theirs, atol=1e-6)


@given(st.floats(0.2, 1.0, exclude_max=True))
def test_between_larger_voxels_lies_what_scipy_interpolates(ratio: float) -> None:
    stored = np.random.default_rng(2).random(17)
    axis = ResampledAxis(17, ratio)
    centres = (np.arange(axis.resampled_extent) + 0.5) * ratio - 0.5
    theirs = map_coordinates(stored, [centres], order=1, mode="nearest")
    np.testing.assert_allclose(_part(Box.whole((len(centres),)), [axis], stored), theirs, atol=1e-12)


@given(st.floats(0.2, 9), st.integers(1, 40))
def test_a_flat_volume_stays_flat_and_a_ramp_keeps_its_place(ratio: float, extent: int) -> None:
    axis = ResampledAxis(extent, ratio)
    whole = Box.whole((axis.resampled_extent,))
    assert (_part(whole, [axis], np.full(extent, 37, np.uint8)) == 37).all()
    assert (axis.resampled_extent - 1) * ratio < extent <= axis.resampled_extent * ratio + 1e-3
    ramp = _part(whole, [axis], np.arange(extent, dtype=np.float64))
    centres = (np.arange(axis.resampled_extent) + 0.5) * ratio - 0.5
    half = max(1.0, ratio)
    inner = (centres >= half) & (centres <= extent - 1 - half)
    # A triangle of another width than whole voxels samples a ramp unevenly, by a fraction of a stored voxel.
    np.testing.assert_allclose(ramp[inner], centres[inner], atol=0.13)


def test_integers_are_rounded_and_keep_their_range() -> None:
    axes = _axes((0.5,), (2,))
    assert resample(np.array([0, 65535], np.uint16), axes, [0], [4]).tolist() == [0, 16384, 49151, 65535]
    deep = np.array([2**40, 2**40 + 4], np.uint64)
    assert resample(deep, axes, [0], [4]).tolist() == [2**40, 2**40 + 1, 2**40 + 3, 2**40 + 4]
    assert resample(np.float16([0, 1]), axes, [1], [3]).tolist() == [0.25, 0.75]


def test_smaller_voxels_are_averaged_and_not_skipped() -> None:
    """Of noise at an eighth of the resolution, every voxel counts: its spread falls as that of a mean of many."""
    noise = np.random.default_rng(3).standard_normal((1, 256, 256)).astype(np.float32)
    axes = _axes((1.0, 8.0, 8.0), noise.shape)
    assert _part(Box.whole((1, 32, 32)), axes, noise).std() < 0.15
