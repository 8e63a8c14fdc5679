"""What is known of each object of a volume: how large, where, and whether the volume's edge cuts it.

Statistics of blocks add up: counts and sums of coordinates are added, boxes are united. All are whole numbers, so that
the order of blocks changes no bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.labels.merge import Ids

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ObjectStats:
    """One row per object, by id; 88 bytes each.

    Attributes:
      ids: uint64, (objects,), ascending, without 0.
      voxels: int64, (objects,).
      start: int64, (objects, 3), first voxel of the bounding box, z, y, x.
      stop: int64, (objects, 3), one past its last.
      sums: int64, (objects, 3), the voxels' coordinates added up.
    """

    ids: Ids
    voxels: Counts
    start: Counts
    stop: Counts
    sums: Counts

    @property
    def centroid(self) -> NDArray[np.float64]:
        """Float64, (objects, 3): the mean of the voxels' coordinates, voxel 0 being at 0."""
        centroid: NDArray[np.float64] = self.sums / self.voxels[:, np.newaxis]
        return centroid

    def touches_border(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """Which objects have a voxel in the outermost layer of a volume of this shape, and may go on beyond it."""
        at_border: NDArray[np.bool_] = ((self.start == 0) | (self.stop == np.asarray(shape))).any(axis=1)
        return at_border

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays by name, for a file."""
        return {name: getattr(self, name) for name in ("ids", "voxels", "start", "stop", "sums")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ObjectStats:
        """What `to_arrays` gave."""
        return cls(**arrays)


def object_stats(labels: NDArray[Any], origin: Sequence[int]) -> ObjectStats:
    """The statistics of one block's objects.

    Args:
      labels: unsigned integer, (z, y, x); 0 is no object.
      origin: the volume's voxel that the block begins at.

    >>> found = object_stats(np.array([[[7, 7, 0, 9]]], np.uint64), (5, 0, 10))
    >>> found.ids.tolist(), found.voxels.tolist(), found.start.tolist(), found.centroid.tolist()
    ([7, 9], [2, 1], [[5, 0, 10], [5, 0, 13]], [[5.0, 0.0, 10.5], [5.0, 0.0, 13.0]])
    """
    # Runs along x, which the end of a row cuts: there are far fewer of them than voxels.
    first = np.ones(labels.shape, bool)
    first[..., 1:] = labels[..., 1:] != labels[..., :-1]
    flat, begins = labels.ravel(), np.flatnonzero(first)
    lengths = np.diff(begins, append=flat.size)
    inside = flat[begins] != 0
    begins, lengths = begins[inside], lengths[inside]
    z, y, x = (axis + start for axis, start in zip(np.unravel_index(begins, labels.shape), origin, strict=True))
    # Of a run from a to b the coordinates add up to n (a + b) / 2, which is whole.
    sums = np.stack([z * lengths, y * lengths, lengths * (2 * x + lengths - 1) // 2], axis=1)
    start = np.stack([z, y, x], axis=1)
    stop = np.stack([z + 1, y + 1, x + lengths], axis=1)
    return _united(flat[begins].astype(np.uint64), lengths, start, stop, sums)


def merge_stats(parts: Sequence[ObjectStats]) -> ObjectStats:
    """The statistics of all parts' voxels together, in whatever order they come."""
    none, places = np.empty(0, np.int64), np.empty((0, 3), np.int64)
    return _united(
        np.concatenate([np.empty(0, np.uint64), *(part.ids for part in parts)]),
        np.concatenate([none, *(part.voxels for part in parts)]),
        np.concatenate([places, *(part.start for part in parts)]),
        np.concatenate([places, *(part.stop for part in parts)]),
        np.concatenate([places, *(part.sums for part in parts)]),
    )


def _united(ids: Ids, voxels: Counts, start: Counts, stop: Counts, sums: Counts) -> ObjectStats:
    if len(ids) == 0:
        return ObjectStats(ids, voxels, start, stop, sums)
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    return ObjectStats(
        ids[first],
        np.add.reduceat(voxels[order], first),
        np.minimum.reduceat(start[order], first),
        np.maximum.reduceat(stop[order], first),
        np.add.reduceat(sums[order], first),
    )
