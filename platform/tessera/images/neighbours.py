"""Neighbouring sections as input channels: which sections a 2.5D network sees around the one it predicts.

A membrane cut obliquely is a blur in one section and a line in the next. So the network is shown some sections above
and below, as channels of one image, and predicts the middle one. Which they are depends on the section's place in the
volume alone, never on what a block or a training part happens to hold:

    z            0  1  2  3  4        the volume; 3 is missing
    of 0         [1  0  1]            mirrored at the true edge, the edge section not repeated
    of 1         [0  1  2]            real
    of 2         [1  2  1]            a missing one is mirrored around the middle, as beyond an edge
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.images.mirror import mirror_indices


def neighbour_positions(z: int, sections: int, extent: int, missing: Collection[int] = ()) -> list[int]:
    """Where the channels of section `z` are read: from `z - (sections - 1) / 2` on, upwards.

    Positions may pass the volume's first or last section: to be mirrored there, as any context is. One that falls on a
    missing section is mirrored around `z`; where that one is missing too, `z` itself stands in, for the zeros of a
    missing section would look like a fold to the network.

    >>> neighbour_positions(0, 3, extent=5), neighbour_positions(2, 3, extent=5, missing={3})
    ([-1, 0, 1], [1, 2, 1])
    >>> neighbour_positions(2, 3, extent=5, missing={1, 3})
    [2, 2, 2]

    Args:
      z: the section predicted.
      sections: how many channels, odd.
      extent: sections of the volume.
      missing: sections that hold nothing.
    """
    half = sections // 2
    return [_readable((z + offset, z - offset, z), extent, missing) for offset in range(-half, half + 1)]


def _readable(candidates: tuple[int, ...], extent: int, missing: Collection[int]) -> int:
    """The first candidate that is not missing; the last one where all are."""
    if not missing:
        return candidates[0]
    present = (z for z in candidates if int(mirror_indices(z, z + 1, extent)[0]) not in missing)
    return next(present, candidates[-1])


def neighbours_of(z: int, sections: int, extent: int, missing: Collection[int] = ()) -> list[int]:
    """The sections themselves that are the channels of `z`, mirrored at the volume's first and last one.

    >>> neighbours_of(0, 5, extent=9), neighbours_of(8, 3, extent=9)
    ([2, 1, 0, 1, 2], [7, 8, 7])
    """
    return [int(mirror_indices(p, p + 1, extent)[0]) for p in neighbour_positions(z, sections, extent, missing)]


def with_neighbours(
    voxels: NDArray[Any], first: int, sections: int, extent: int, missing: Collection[int] = ()
) -> NDArray[Any]:
    """Sections with their neighbours as channels.

    Args:
      voxels: (z, y, x): mirrored where they pass the volume, `(sections - 1) / 2` more on both sides than is returned.
      first: position of the first of them in the volume; may be negative.
      sections: how many channels, odd; for 1, a view with a channel axis comes back.
      extent: sections of the volume.
      missing: sections that hold nothing.

    Returns:
      (z - sections + 1, y, x, sections).
    """
    if sections == 1:
        return voxels[..., np.newaxis]
    half = sections // 2
    middles = range(first + half, first + len(voxels) - half)
    rows = np.array([neighbour_positions(z, sections, extent, missing) for z in middles]) - first
    return np.moveaxis(voxels[rows], 1, -1)
