"""Voxels of another size: each one wanted is a weighted mean of the stored ones around its centre.

    stored    |   0   |   1   |   2   |   3   |   4   |   5   |      4 nm
    wanted    |     0     |     1     |     2     |     3     |      6 nm: the first edges coincide

Weights are a triangle's (linear interpolation), as wide as two voxels, stored or wanted, whichever are larger: between
larger ones nothing is made up, and of smaller ones none is skipped, which would turn their noise into grain. A voxel
depends on its own index and the stored voxels alone: however a volume is cut, it comes out the same, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Extents such as 3 x 0.1 / 0.3 must not gain a voxel by their last digit.
_SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class ResampledAxis:
    """One axis: which stored voxels make each wanted one, and with what weights.

    >>> axis = ResampledAxis(extent=6, ratio=1.5)
    >>> axis.resampled_extent, axis.reach(1, 2), ResampledAxis(6, 0.5).resampled_extent
    (4, (1, 4), 12)

    Attributes:
      extent: stored voxels, at least 1.
      ratio: size of a wanted voxel over that of a stored one; 1 leaves the axis as it is.
    """

    extent: int
    ratio: float

    @property
    def resampled_extent(self) -> int:
        """Wanted voxels: the last one may pass the stored edge by less than its size, so that nothing is lost."""
        return max(1, ceil(self.extent / self.ratio - _SLACK))

    def taps(self, start: int, stop: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Stored voxels and their weights, for wanted voxels `start` to `stop`.

        Returns:
          Indices inside the axis and weights that sum to 1, each (stop - start, taps). What would lie beyond an edge
          has weight 0: a window that passes it is averaged over what lies inside.
        """
        half = max(1.0, self.ratio)
        centres = (np.arange(start, stop) + 0.5) * self.ratio - 0.5
        first = np.floor(centres - half).astype(np.intp) + 1
        indices = first[:, np.newaxis] + np.arange(ceil(2 * half))
        weights = np.maximum(0.0, 1.0 - np.abs(indices - centres[:, np.newaxis]) / half)
        weights[(indices < 0) | (indices >= self.extent)] = 0.0
        return np.clip(indices, 0, self.extent - 1), weights / weights.sum(axis=1, keepdims=True)

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """The stored voxels, half-open, that wanted ones `start` to `stop` are made of."""
        if self.ratio == 1:
            return start, stop
        indices, weights = self.taps(start, stop)
        used = indices[weights > 0]
        return int(used.min()), int(used.max()) + 1


def resample(
    voxels: NDArray[Any], axes: Sequence[ResampledAxis], start: Sequence[int], stop: Sequence[int]
) -> NDArray[Any]:
    """Wanted voxels `start` to `stop` out of the stored ones that they are made of.

    Args:
      voxels: bool, integer or float: the stored voxels of each axis's `reach`.
      axes: one per axis of `voxels`.
      start: first wanted voxel.
      stop: the one after the last.

    Returns:
      `voxels`' dtype; integers are rounded to the nearest.

    >>> axis = ResampledAxis(extent=4, ratio=0.5)
    >>> resample(np.float32([0, 8, 8, 0]), [axis], [0], [8]).tolist()
    [0.0, 2.0, 6.0, 8.0, 8.0, 6.0, 2.0, 0.0]
    """
    narrow = voxels.dtype.itemsize <= 2 or voxels.dtype == np.float32
    values = voxels.astype(np.float32 if narrow else np.float64)
    for number, (axis, first, last) in enumerate(zip(axes, start, stop, strict=True)):
        if axis.ratio != 1:
            values = _along(values, number, axis, first, last)
    return values.astype(voxels.dtype) if voxels.dtype.kind == "f" else np.rint(values).astype(voxels.dtype)


def _along(values: NDArray[Any], number: int, axis: ResampledAxis, start: int, stop: int) -> NDArray[Any]:
    indices, weights = axis.taps(start, stop)
    # Clipped: what has no weight may lie outside of what was read.
    inside = np.clip(indices - axis.reach(start, stop)[0], 0, values.shape[number] - 1)
    shape = tuple(-1 if i == number else 1 for i in range(values.ndim))
    # Tap by tap in one order, and not as a matrix product, whose sums depend on its shape.
    total = np.zeros((*values.shape[:number], stop - start, *values.shape[number + 1 :]), values.dtype)
    for tap in range(indices.shape[1]):
        part = np.take(values, inside[:, tap], axis=number)
        part *= weights[:, tap].astype(values.dtype).reshape(shape)
        total += part
    return total
