"""Coarser images: each voxel of a level is the mean of those it covers in the level above.

Odd extents are kept: a window that passes the far edge is averaged over what lies inside, and the level's extent is
rounded up, so that no voxel is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pooled_shape(shape: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """Extents of the coarser level, rounded up.

    >>> pooled_shape((5, 7, 8), (1, 2, 2))
    (5, 4, 4)
    """
    return tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))


def mean_pool(voxels: NDArray[Any], factors: Sequence[int]) -> NDArray[Any]:
    """Means over windows that do not overlap.

    Args:
      voxels: bool, integer or float, of any number of axes; its voxel 0 begins a window.
      factors: extent of the window, an entry per axis.

    Returns:
      The same dtype, of `pooled_shape`. Integers are rounded to the nearest, halves to the even one; a bool is the
      majority's, and False where it is even. Sums are float64: exact for integers of up to 50 bits.

    >>> mean_pool(np.array([[1, 2, 5], [3, 4, 9]], np.uint8), (2, 2)).tolist()
    [[2, 7]]
    """
    shape = pooled_shape(voxels.shape, factors)
    total, count = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    for offset in product(*(range(f) for f in factors)):
        part = voxels[tuple(slice(o, None, f) for o, f in zip(offset, factors, strict=True))]
        inside = tuple(slice(0, n) for n in part.shape)
        total[inside] += part
        count[inside] += 1
    mean = total / count
    if voxels.dtype == np.bool_:
        return mean > 0.5
    return (np.rint(mean) if voxels.dtype.kind in "ui" else mean).astype(voxels.dtype)
