"""The pre-pass of the `per_section` rule: grey levels of a volume's sections, before any block is predicted.

Only sampled patches are read, each slab of chunks once: at most 2^20 voxels a section, whatever its size. The table
depends on the volume alone, not on the region, tiles or blocks of the job.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.levels import Levels, LevelTable, check_levels, grey_levels, sampled_patches
from tessera.storage.volumes import Volume


def volume_levels(
    volume: Volume,
    sections: range,
    read: Callable[[Box], NDArray[Any]] | None = None,
    *,
    unread: Collection[int] = (),
    bare: Collection[int] = (),
) -> LevelTable:
    """Levels by section number; None for sections that the volume marks invalid, and for those that nobody reads.

    Args:
      volume: z, y, x.
      sections: which to measure.
      read: gives the voxels of a box of it; by default the volume's own.
      unread: sections that need no levels; they are not measured.
      bare: sections that may have none: where they are predicted, nothing of them is stored.

    Raises:
      ValueError: any other section has no levels; names it.
    """
    table: dict[int, Levels | None] = dict.fromkeys(sections)
    valid = [z for z in sections if z not in volume.invalid_sections and z not in unread]
    for slab in _slabs(valid, volume.chunk[0]):
        samples = _samples(volume, slab, read or volume.read)
        table |= {z: grey_levels(samples[z - slab.start]) for z in valid if z in slab}
    check_levels({z: table[z] for z in valid if z not in bare}, volume.url)
    return table


def _slabs(sections: list[int], depth: int) -> Iterator[range]:
    """Runs of sections that share their chunks, each from its first to its last section wanted."""
    for slab in sorted({z // depth for z in sections}):
        inside = [z for z in sections if z // depth == slab]
        yield range(inside[0], inside[-1] + 1)


def _samples(volume: Volume, slab: range, read: Callable[[Box], NDArray[Any]]) -> NDArray[Any]:
    """The sampled voxels of each section of a slab, (z, n)."""
    _, y, x = volume.shape
    boxes = [Box((slab.start, *p.start), (slab.stop, *p.stop)) for p in sampled_patches((y, x))]
    return np.concatenate([read(box).reshape(len(slab), -1) for box in boxes], axis=1)


def attribute_of(table: LevelTable) -> dict[str, Levels | None]:
    """The table as an output keeps it in its attributes: section numbers of the raw volume, and their levels."""
    return {str(z): table[z] for z in sorted(table)}
