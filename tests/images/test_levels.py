"""Grey levels of a section: measured from tissue alone, at places that depend on its extent alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.geometry.boxes import Box
from tessera.images.levels import (
    PATCH_PX,
    WHOLE_VOXELS,
    grey_levels,
    levels_of_sections,
    sampled_patches,
    sampled_voxels,
)


@given(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)))
@settings(deadline=None)
def test_patches_lie_inside_apart_and_within_the_budget(extent: tuple[int, int]) -> None:
    patches = sampled_patches(extent)
    assert 0 < sum(patch.size for patch in patches) <= WHOLE_VOXELS
    assert all(Box.whole(extent).contains(patch) for patch in patches)
    assert len({patch.start for patch in patches}) == len(patches)
    if len(patches) > 1:
        assert all(n % PATCH_PX == 0 for patch in patches for n in patch.start)


def test_patches_reach_every_part_of_a_large_section() -> None:
    starts = np.array([patch.start for patch in sampled_patches((30_000, 20_000))])
    assert starts.min(0).tolist() == [0, 0]
    assert (starts.max(0) > (29_700, 19_700)).all()


def test_background_and_saturation_do_not_count() -> None:
    tissue = np.random.default_rng(0).integers(60, 200, (200, 200)).astype(np.uint8)
    framed = np.pad(tissue, 150)
    framed[:40] = 255
    assert grey_levels(framed) == grey_levels(tissue)
    as_float = framed.astype(np.float32)
    as_float[:40] = np.nan
    assert grey_levels(as_float) == grey_levels(tissue)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_levels_are_percentiles_that_occur(dtype: Any) -> None:
    voxels = np.random.default_rng(1).integers(1, 120, (300, 70)).astype(dtype)
    low, high = grey_levels(voxels) or (0, 0)
    assert {low, high} <= set(voxels.ravel().tolist())
    assert (voxels < low).mean() <= 0.05 <= (voxels <= low).mean()
    assert (voxels < high).mean() <= 0.95 <= (voxels <= high).mean()


def test_a_blank_or_nearly_blank_section_has_no_levels() -> None:
    dots = np.zeros((100, 100), np.uint8)
    dots.ravel()[:63] = np.arange(1, 64)
    assert grey_levels(dots) is None
    dots.ravel()[63] = 64
    assert grey_levels(dots) is not None
    assert grey_levels(np.full((100, 100), 7, np.uint8)) is None
    with pytest.raises(
        ValueError, match=r"sections 1 of the sections given hold next to nothing.*normalisation global"
    ):
        levels_of_sections(
            np.stack([np.arange(1, 101, dtype=np.uint8).reshape(10, 10), np.full((10, 10), 7, np.uint8)])
        )


def test_a_large_section_is_measured_at_its_patches() -> None:
    section = np.random.default_rng(2).integers(50, 200, (1500, 1300)).astype(np.uint8)
    chosen = np.zeros(section.shape, bool)
    for patch in sampled_patches(section.shape):
        chosen[patch.slices] = True
    elsewhere = np.where(chosen, section, 255 - section)
    assert levels_of_sections(elsewhere[None]) == levels_of_sections(section[None])
    assert sampled_voxels(section).size == chosen.sum() < section.size
