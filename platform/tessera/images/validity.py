"""Which voxels may be predicted: sections, stored chunks and a mask on another grid, all as plain arrays.

    section z:      . . x . .            a missing or unselected section
    stored chunks:  [##][  ][##]         what was never stored holds nothing to look at
    mask:           . . o o o .          a coarser grid, nearest neighbour

Each answer depends on a voxel's place in the volume alone, never on the box that is asked for: so a box is valid where
the whole volume is, however it is cut.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box

Spans = Sequence[tuple[int, int]]
"""Half-open intervals of voxels along one axis, none of them empty."""


@dataclass(frozen=True, eq=False)
class ChunkMap:
    """Which chunks of a region of a volume are stored; a byte for each.

    Attributes:
      chunk: voxels per chunk on each axis.
      first: number of the first chunk on each axis that the map tells of.
      stored: bool, a flag per chunk.
    """

    chunk: tuple[int, ...]
    first: tuple[int, ...]
    stored: NDArray[np.bool_] = field(repr=False)

    @property
    def complete(self) -> bool:
        """Whether every chunk is stored."""
        return bool(self.stored.all())

    def of(self, box: Box) -> NDArray[np.bool_]:
        """Bool of the box's shape: whether each voxel lies in a chunk that is stored.

        >>> ChunkMap((2,), (0,), np.array([True, False])).of(Box((1,), (4,))).tolist()
        [True, False, False]
        """
        bounds = list(zip(box.start, box.stop, self.chunk, self.first, strict=True))
        found = self.stored[tuple(slice(a // c - first, -(-b // c) - first) for a, b, c, first in bounds)]
        for axis in reversed(range(box.ndim)):
            # The last axis first, while the others are a few chunks long: a block takes milliseconds.
            a, b, c, _ = bounds[axis]
            edges = np.clip(np.arange(a // c, -(-b // c) + 1) * c, a, b)
            found = np.repeat(found, np.diff(edges), axis=axis)
        return found

    def any_in(self, spans: Sequence[Spans]) -> NDArray[np.bool_]:
        """Whether any chunk that a box touches is stored, for each box of a grid.

        >>> ChunkMap((2,), (0,), np.array([True, False, False])).any_in([[(0, 3), (3, 6)]]).tolist()
        [True, False]

        Args:
          spans: the grid's intervals of voxels, axis by axis.

        Returns:
          Bool, an entry per combination of intervals.
        """
        found: NDArray[Any] = self.stored
        for axis, (own, chunk, first) in enumerate(zip(spans, self.chunk, self.first, strict=True)):
            # One axis after the other: a volume of 10^6 blocks takes some hundred steps.
            slices = [slice(a // chunk - first, (b - 1) // chunk + 1 - first) for a, b in own]
            moved = np.moveaxis(found, axis, 0)
            found = np.stack([np.logical_or.reduce(moved[s]) for s in slices], axis=axis)
        return np.asarray(found, bool)

    def sections_without(self, sections: range) -> frozenset[int]:
        """Those sections (axis 0) of which no chunk is stored."""
        stored = [bool(layer.any()) for layer in self.stored]
        return frozenset(z for z in sections if not stored[z // self.chunk[0] - self.first[0]])

    def without_sections(self, bare: Collection[int], sections: range) -> bool:
        """Whether every chunk is stored but those of `bare` sections."""
        layers = {z // self.chunk[0] - self.first[0] for z in sections if z not in bare}
        return bool(self.stored[sorted(layers)].all())


@dataclass(frozen=True, slots=True)
class NearestAxis:
    """One axis of a mask, as it is seen from the voxels of another volume: the nearest voxel's centre counts.

    Voxel i of the volume lies at `ratio * i + shift` in voxels of the mask. Half-way between two of them, the one with
    the greater number counts; beyond the mask's edge its edge voxel does.

    >>> NearestAxis(ratio=0.5, shift=-0.25, extent=2).places(0, 5).tolist()
    [0, 0, 1, 1, 1]

    Attributes:
      ratio: the volume's voxel size over the mask's.
      shift: where the volume's voxel 0 lies.
      extent: voxels of the mask.
    """

    ratio: float
    shift: float
    extent: int

    def places(self, start: int, stop: int) -> NDArray[np.intp]:
        """The mask's voxel for each of the volume's from `start` up to `stop`."""
        exact = self.ratio * np.arange(start, stop) + self.shift
        # Sizes such as 4.4 nm are not exact in binary: without this, half-way would go either way.
        return np.clip(np.floor(np.round(exact, 6) + 0.5), 0, self.extent - 1).astype(np.intp)

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The mask's voxels, half-open, that the volume's voxels from `start` up to `stop` lie in."""
        first, last = (
            min(max(floor(round(self.ratio * i + self.shift, 6) + 0.5), 0), self.extent - 1) for i in (start, stop - 1)
        )
        return first, last + 1


def nearest_axis(
    size_nm: float, origin_nm: float, extent: int, mask_size_nm: float, mask_origin_nm: float, mask_extent: int
) -> NearestAxis:
    """An axis of a mask from both grids' voxel sizes and the centres of their voxels 0, in nanometers.

    Grids of the same extent, whose sizes agree within 1% and whose centres within half a voxel, are one grid.

    Raises:
      ValueError: the mask ends more than one voxel (of the coarser grid) before or after the volume does.
    """
    same = abs(mask_size_nm - size_nm) <= 0.01 * size_nm and abs(mask_origin_nm - origin_nm) <= size_nm / 2
    if extent == mask_extent and same:
        return NearestAxis(1.0, 0.0, extent)
    slack = max(size_nm, mask_size_nm) * (1 + 1e-6)
    edges = (origin_nm - size_nm / 2, origin_nm + (extent - 0.5) * size_nm)
    own = (mask_origin_nm - mask_size_nm / 2, mask_origin_nm + (mask_extent - 0.5) * mask_size_nm)
    if any(abs(a - b) > slack for a, b in zip(edges, own, strict=True)):
        raise ValueError(f"{own[0]:g} to {own[1]:g} nm, where the volume reaches from {edges[0]:g} to {edges[1]:g} nm")
    return NearestAxis(size_nm / mask_size_nm, (origin_nm - mask_origin_nm) / mask_size_nm, mask_extent)


def valid_in(
    box: Box, invalid: Collection[int], stored: ChunkMap | None, mask: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Bool of the box's shape (z, y, x): voxels of valid sections, in stored chunks, where the mask is true.

    Args:
      box: inside the volume.
      invalid: sections of the volume that are not valid.
      stored: None where every chunk is.
      mask: of the box's shape; None is true everywhere.
    """
    # `of` gives a new array, which may be changed.
    valid = np.ones(box.shape, bool) if stored is None else stored.of(box)
    valid[[z - box.start[0] for z in range(box.start[0], box.stop[0]) if z in invalid]] = False
    if mask is not None:
        valid &= mask
    return valid
