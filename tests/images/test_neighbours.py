"""Which sections a 2.5D network sees: real ones, mirrored at the volume's edges and around missing ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.images.neighbours import neighbour_positions, neighbours_of, with_neighbours

SECTIONS = st.sampled_from([1, 3, 5, 7])


@given(st.integers(1, 9), SECTIONS, st.data())
def test_neighbours_are_those_of_a_reflected_volume(extent: int, sections: int, data: st.DataObject) -> None:
    z = data.draw(st.integers(0, extent - 1))
    reflected = np.pad(np.arange(extent), sections // 2, mode="reflect")
    assert neighbours_of(z, sections, extent) == reflected[z : z + sections].tolist()


@given(st.integers(1, 9), SECTIONS, st.data())
def test_a_missing_section_is_never_shown_unless_it_is_the_middle(
    extent: int, sections: int, data: st.DataObject
) -> None:
    z = data.draw(st.integers(0, extent - 1))
    missing = data.draw(st.sets(st.integers(0, extent - 1))) - {z}
    seen, plain = neighbours_of(z, sections, extent, missing), neighbours_of(z, sections, extent)
    assert not missing & set(seen)
    assert all(found == wanted for found, wanted in zip(seen, plain, strict=True) if wanted not in missing)
    assert seen[sections // 2] == z


@given(SECTIONS, st.integers(-3, 12), st.sets(st.integers(0, 9)))
def test_every_channel_lies_within_the_halo(sections: int, z: int, missing: set[int]) -> None:
    positions = neighbour_positions(z, sections, 10, missing)
    assert len(positions) == sections
    assert max(abs(position - z) for position in positions) <= sections // 2


@pytest.mark.parametrize("sections", [1, 3, 5])
def test_channels_hold_the_neighbours_in_order(sections: int) -> None:
    first, half = 4, sections // 2
    voxels = np.arange(first, first + 6)[:, None, None] * np.ones((1, 2, 3), int)
    stacked = with_neighbours(voxels, first, sections, extent=20)
    assert stacked.shape == (6 - 2 * half, 2, 3, sections)
    for row, z in zip(stacked, range(first + half, first + 6 - half), strict=True):
        assert row[0, 0].tolist() == [z + offset for offset in range(-half, half + 1)]
    assert with_neighbours(voxels, first, 1, extent=20).base is not None, "2D costs no copy"
