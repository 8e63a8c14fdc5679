"""Grey levels of a section: what the `per_section` rule measures before anything is normalised.

Sections of one block differ in brightness and contrast: staining, thickness and the beam drift while thousands of them
are imaged. Their levels are measured once per section, from voxels whose places depend on the section's extent alone,
never from what a tile or a block happens to hold: so a voxel comes out alike in any tiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box

Levels = tuple[float, float]
"""A section's low and high grey level, in raw intensities; low < high."""
LevelTable = Mapping[int, Levels | None]
"""Levels by section number; None marks a section without any, such as a missing one."""

# Part of the rule's meaning: a network that was trained on other percentiles was trained under another rule.
LOW_PERCENT, HIGH_PERCENT = 5.0, 95.0
WHOLE_VOXELS = 2**20
"""A section of up to this many voxels is measured whole; a larger one by patches."""
PATCH_PX, PATCHES = 128, 8
"""Patches are at most 8 x 8 of 128 x 128: as many voxels. They start at multiples of 128: in one chunk, mostly."""

FEWEST_VOXELS = 64
"""Percentiles of fewer voxels say little of a section."""


def sampled_patches(extent: tuple[int, int]) -> list[Box]:
    """Where a section is looked at to measure its levels: all of it, or patches spread evenly.

    >>> sampled_patches((512, 512))
    [Box(start=(0, 0), stop=(512, 512))]
    >>> len(sampled_patches((30_000, 30_000)))
    64

    Args:
      extent: of the section on y, x, pixels.

    Returns:
      Boxes inside the section, at most 2^20 pixels together.
    """
    whole = Box.whole(extent)
    if whole.size <= WHOLE_VOXELS:
        return [whole]
    rows, columns = (_patch_starts(n) for n in extent)
    return [Box((y, x), (y + PATCH_PX, x + PATCH_PX)).clipped(whole) for y in rows for x in columns]


def _patch_starts(extent: int) -> list[int]:
    """First pixels of the patches along one axis.

    >>> _patch_starts(4096)
    [0, 512, 1024, 1664, 2176, 2816, 3328, 3968]
    """
    last = max(extent - PATCH_PX, 0) // PATCH_PX
    return sorted({PATCH_PX * (last * k // (PATCHES - 1)) for k in range(PATCHES)})


def sampled_voxels(section: NDArray[Any]) -> NDArray[Any]:
    """The voxels of a whole section that its levels are measured from, in one row.

    Args:
      section: (y, x).
    """
    y, x = section.shape
    return np.concatenate([section[patch.slices].ravel() for patch in sampled_patches((y, x))])


def grey_levels(voxels: NDArray[Any]) -> Levels | None:
    """The 5th and 95th percentile of what is tissue.

    Zeros and, in integers, the least and greatest value of the dtype are left out: background, voxels that were never
    written, and saturated ones. Percentiles are values that occur, so levels of integers are exact.

    >>> grey_levels(np.arange(101, dtype=np.uint8))
    (5.0, 95.0)

    Args:
      voxels: integer or floating, any shape.

    Returns:
      None where fewer than 64 voxels are left, or nearly all of them are one value.
    """
    kept = voxels[_is_tissue(voxels)]
    if kept.size < FEWEST_VOXELS:
        return None
    low, high = np.percentile(kept, (LOW_PERCENT, HIGH_PERCENT), method="lower").tolist()
    return (float(low), float(high)) if low < high else None


def _is_tissue(voxels: NDArray[Any]) -> NDArray[np.bool_]:
    tissue: NDArray[np.bool_] = voxels != 0
    if voxels.dtype.kind in "iu":
        limits = np.iinfo(voxels.dtype)
        tissue &= (voxels != limits.min) & (voxels != limits.max)
    else:
        tissue &= np.isfinite(voxels)
    return tissue


def levels_of_sections(sections: NDArray[Any]) -> list[Levels]:
    """The levels of whole sections at hand: training, validation, and the oracle of tilings.

    Args:
      sections: integer or floating, (z, y, x).

    Raises:
      ValueError: a section has no levels; names it.
    """
    found = {z: grey_levels(sampled_voxels(section)) for z, section in enumerate(sections)}
    check_levels(found, "the sections given")
    return [levels for levels in found.values() if levels is not None]


def check_levels(found: LevelTable, name: str) -> None:
    """Refuse sections in which no levels can be measured.

    Raises:
      ValueError: names `name` and the sections.
    """
    bare = [z for z, levels in found.items() if levels is None]
    if bare:
        shown = ", ".join(map(str, bare[:10])) + (", ..." if len(bare) > 10 else "")
        raise ValueError(
            f"sections {shown} of {name} hold next to nothing but background, saturated voxels or a single value: "
            "they have no grey levels of their own, and the per_section rule would divide by nothing. Ingest the "
            "volume with `tessera ingest`, which marks blank sections, leave these sections out, or train with "
            "--normalisation global."
        )
