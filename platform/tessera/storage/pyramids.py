"""Pyramid metadata: how many levels, by which factors, and where their voxels lie.

Voxels are halved along every axis that is not already coarser than the others: serial sections of 50 x 4 x 4 nm keep z
until y and x have caught up, as is customary for EM. A level's voxel covers several of the level above, so its centre
is shifted: by (factor - 1) / 2 of the finer voxel. Without that translation viewers draw the levels beside each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import numpy as np

from tessera.geometry.boxes import Box
from tessera.storage.attributes import set_levels
from tessera.storage.drafts import ArrayDraft, add_array
from tessera.storage.layouts import Layout, legal_layout
from tessera.storage.objects import remove_tree
from tessera.storage.ome import Level
from tessera.storage.stores import zarr_children
from tessera.storage.validity import VALID
from tessera.storage.volumes import Volume, open_array

Size = tuple[float, float, float]
# Smaller than this on y and x a level is a thumbnail, and one more would show nothing.
_SMALLEST_PX = 256


@dataclass(frozen=True, slots=True)
class PyramidLevel:
    """One coarser level to be made.

    Attributes:
      number: 1 for the first below the finest.
      factors: of the level above, an entry per axis of the array.
      shape: extents, voxels.
      level: its name and coordinates.
    """

    number: int
    factors: tuple[int, ...]
    shape: tuple[int, ...]
    level: Level


def halving_factors(shape: Sequence[int], voxel_size_nm: Size) -> tuple[int, int, int]:
    """By how much each of z, y, x is reduced for the next level: 2, or 1 where its voxels are already coarser.

    >>> halving_factors((64, 1024, 1024), (50.0, 4.0, 4.0)), halving_factors((64, 64, 64), (50.0, 64.0, 64.0))
    ((1, 2, 2), (2, 2, 2))
    """
    # Within a factor of sqrt(2) of the finest: nearer to isotropic halved than left.
    finest = min(size for size, n in zip(voxel_size_nm, shape, strict=True) if n > 1) if max(shape) > 1 else 0.0
    z, y, x = (2 if n > 1 and size < finest * sqrt(2) else 1 for size, n in zip(voxel_size_nm, shape, strict=True))
    return z, y, x


def plan_levels(volume: Volume, count: int | None = None) -> tuple[PyramidLevel, ...]:
    """The coarser levels of a volume, fine to coarse.

    Args:
      volume: opened at its finest level; its voxel size is known.
      count: how many; None goes on while y or x is above 256.

    Raises:
      ValueError: the voxel size is unknown, or so many levels cannot be halved out of it.
    """
    if volume.voxel_size_nm is None:
        raise ValueError(
            f"{volume.url} has no voxel size: which axes are coarser than others, and where a level's voxels lie, is "
            "unknown. Ingest it with --voxel_size_nm."
        )
    levels: list[PyramidLevel] = []
    shape, size, shift = volume.shape, volume.voxel_size_nm, volume.translation_nm or (0.0, 0.0, 0.0)
    while len(levels) < count if count is not None else max(shape[-2:]) > _SMALLEST_PX:
        factors = halving_factors(shape[-3:], size)
        if prod(factors) == 1:
            break
        shift = _each(shift, size, factors, lambda t, s, f: t + s * (f - 1) / 2)
        size = _each(size, size, factors, lambda s, _, f: s * f)
        shape = (*shape[:-3], *(-(-n // f) for n, f in zip(shape[-3:], factors, strict=True)))
        number = len(levels) + 1
        lead = (1,) * (len(shape) - 3)
        levels.append(
            PyramidLevel(number, lead + factors, shape, Level(str(number), size, shift if any(shift) else None))
        )
    if count is not None and len(levels) < count:
        raise ValueError(
            f"levels={count}: {volume.url} of shape {volume.shape} has {len(levels)} coarser levels at most."
        )
    return tuple(levels)


def _each(a: Size, b: Size, factors: Sequence[int], rule: Any) -> Size:
    z, y, x = (rule(p, q, f) for p, q, f in zip(a, b, factors, strict=True))
    return z, y, x


def level_layout(volume: Volume, shape: tuple[int, ...]) -> Layout:
    """Chunk and shard of a coarser level: those of the volume, no larger than the level needs."""
    chunk = tuple(min(c, n) for c, n in zip(volume.chunk, shape, strict=True))
    if volume.zarr_format == 2:
        return Layout(chunk, chunk)
    return legal_layout(shape, volume.dtype.itemsize, chunk)


def create_level(volume: Volume, planned: PyramidLevel) -> None:
    """Make the array of a level, which no reader finds until `finish_levels` names it; one that is there stays.

    Raises:
      FileExistsError: an array of that name and another layout is there.
    """
    draft = ArrayDraft(planned.shape, np.dtype(volume.array.dtype), level_layout(volume, planned.shape))
    add_array(volume.place, planned.level.path, draft, "0.4" if volume.zarr_format == 2 else "0.5")


def open_level(volume: Volume, planned: PyramidLevel, *, writable: bool = False) -> Volume:
    """Open the array of a level that was created."""
    return open_array(volume, planned.level, writable=writable)


def finish_levels(volume: Volume, planned: Sequence[PyramidLevel]) -> None:
    """Name the levels in the volume's metadata: from now on readers find them."""
    set_levels(volume.place, [volume.levels[0], *(one.level for one in planned)])


def remove_levels(volume: Volume) -> None:
    """Forget and delete every level but the finest, those of a job that was killed included; a validity mask stays."""
    set_levels(volume.place, volume.levels[:1])
    for name in zarr_children(volume.place):
        if name not in (volume.levels[0].path, VALID):
            remove_tree(volume.place / name)


def finer_box(box: Box, factors: Sequence[int], finer_shape: Sequence[int]) -> Box:
    """The voxels of the level above that a box of a level covers.

    >>> finer_box(Box((0, 2), (3, 4)), (1, 2), (3, 7))
    Box(start=(0, 4), stop=(3, 7))
    """
    start = tuple(a * f for a, f in zip(box.start, factors, strict=True))
    stop = tuple(min(b * f, n) for b, f, n in zip(box.stop, factors, finer_shape, strict=True))
    return Box(start, stop)
