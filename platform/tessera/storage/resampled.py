"""A volume read at another voxel size, as if it had been stored at it: nothing is written, each read resamples.

Whoever reads it has a `Volume` of another shape, voxel size and translation: regions, mirroring, blocks and tiles all
count the resampled voxels, whose number 0 begins where the stored one's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil, log, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.resample import ResampledAxis, resample
from tessera.storage.ome import Level
from tessera.storage.voxels import Volume

Size = tuple[float, float, float]
# Within this two sizes count as one: the contract's own tolerance.
SAME_SIZE = 0.01
# Stored voxels of one step: what a read holds beside its result, whatever the ratio.
_STEP_VOXELS = 2**26


@dataclass(frozen=True)
class ResampledVolume(Volume):
    """A z, y, x volume at another voxel size; what is read of it is resampled from `source`, axis by axis."""

    source: Volume | None = None

    @property
    def stored(self) -> Volume:
        """The volume whose chunks lie in the store."""
        return self.source or self

    @property
    def resampling(self) -> tuple[ResampledAxis, ...]:
        """How each of z, y, x is resampled."""
        stored, own = self.stored.voxel_size_nm, self.voxel_size_nm
        if stored is None or own is None:
            raise ValueError(f"{self.url} has no voxel size to be resampled from. Give --voxel_size_nm.")
        ratios = (b / a for a, b in zip(stored, own, strict=True))
        return tuple(ResampledAxis(n, r) for n, r in zip(self.stored.shape, ratios, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent on each axis, resampled voxels."""
        return tuple(axis.resampled_extent for axis in self.resampling)

    @property
    def chunk(self) -> tuple[int, ...]:
        """About what one stored chunk holds, resampled voxels."""
        pairs = zip(self.stored.chunk, self.resampling, strict=True)
        return tuple(max(1, ceil(c / axis.ratio)) for c, axis in pairs)

    @property
    def shard(self) -> tuple[int, ...]:
        """As `chunk`: nothing is written."""
        return self.chunk

    @property
    def invalid_sections(self) -> frozenset[int]:
        """Resampled sections that an invalid stored one is part of."""
        invalid, axis = self.stored.invalid_sections, self.resampling[0]
        if not invalid or axis.ratio == 1:
            return invalid
        indices, weights = axis.taps(0, axis.resampled_extent)
        touched = np.isin(indices, list(invalid)) & (weights > 0)
        return frozenset(np.flatnonzero(touched.any(axis=1)).tolist())

    @property
    def corner_nm(self) -> Size | None:
        """Where voxel 0 begins: where the stored one does."""
        return self.stored.corner_nm

    def read(self, box: Box) -> NDArray[Any]:
        """Resampled voxels of a box, in the stored dtype; as `Volume.read`."""
        self._check_inside(box)
        voxels = np.empty(box.shape, self.dtype)
        for z in range(box.start[0], box.stop[0], self._step(box)):
            step = Box((z, *box.start[1:]), (z + self._step(box), *box.stop[1:])).clipped(box)
            voxels[step.relative_to(box.start).slices] = self._read_step(step)
        return voxels

    def _step(self, box: Box) -> int:
        """Sections read at once: few enough that the stored voxels they are made of fit the limit."""
        each = prod(n * axis.ratio for n, axis in zip((1, *box.shape[1:]), self.resampling, strict=True))
        return max(1, int(_STEP_VOXELS / max(each, 1.0)))

    def _read_step(self, box: Box) -> NDArray[Any]:
        axes = self.resampling
        reach = [axis.reach(a, b) for axis, a, b in zip(axes, box.start, box.stop, strict=True)]
        stored = self.stored.read(Box(tuple(a for a, _ in reach), tuple(b for _, b in reach)))
        return resample(stored, axes, box.start, box.stop)


def resampled(volume: Volume, wanted_nm: Sequence[float]) -> Volume:
    """A volume at another voxel size; the volume itself where it has that size.

    An axis whose size is within 1% of the one wanted is left as it is, and keeps its own.

    Raises:
      ValueError: the voxel size is unknown, or the axes are not z, y, x.
    """
    own = volume.voxel_size_nm
    if own is None or len(volume.shape) != 3:
        raise ValueError(
            f"{volume.url} of shape {volume.shape} and voxel size {own or 'unknown'} cannot be resampled: sizes of z, "
            "y, x are needed. Give --voxel_size_nm, such as [50, 4, 4]."
        )
    z, y, x = (a if _same(a, b) else float(b) for a, b in zip(own, wanted_nm, strict=True))
    size = (z, y, x)
    if size == own:
        return volume
    at = volume.translation_nm or (0.0, 0.0, 0.0)
    # The first edges coincide, so that centres lie half the difference apart.
    moved = [t + (b - a) / 2 for t, a, b in zip(at, own, size, strict=True)]
    level = Level(volume.levels[volume.level].path, size, (moved[0], moved[1], moved[2]) if any(moved) else None)
    levels = (*volume.levels[: volume.level], level, *volume.levels[volume.level + 1 :])
    facts = {field.name: getattr(volume, field.name) for field in fields(volume)}
    return ResampledVolume(**facts | {"levels": levels, "voxel_size_nm": size, "writable": False}, source=volume)


def suitable_level(levels: Sequence[Level], wanted_nm: Sequence[float]) -> int:
    """The level to resample from: one that is nowhere coarser than wanted, where there is one; of these the coarsest.

    >>> levels = [Level("0", (50.0, 4.0, 4.0)), Level("1", (50.0, 8.0, 8.0)), Level("2", (100.0, 16.0, 16.0))]
    >>> [suitable_level(levels, (50.0, size, size)) for size in (2.0, 6.0, 12.0, 90.0)]
    [0, 0, 1, 1]
    """

    def rank(number: int) -> tuple[float, float]:
        size = levels[number].voxel_size_nm
        if size is None:
            return float("inf"), 0.0
        steps = [0.0 if _same(a, b) else log(a / b) for a, b in zip(size, wanted_nm, strict=True)]
        # What would have to be made up, in powers; then what would be read for nothing.
        return round(sum(step for step in steps if step > 0), 6), -sum(steps)

    return min(range(len(levels)), key=rank)


def _same(one: float, other: float) -> bool:
    return abs(one - other) <= SAME_SIZE * other
