"""Mirror extrapolation: what a network sees beyond the true edge of a volume.

A valid-convolution network wants more context than a volume's border has. Ronneberger 2015 (figure 2, the overlap-tile
strategy) mirrors the image there, and only there: between tiles the context is real. Reading and mirroring are one
step here, so that no caller pads a whole volume and none mirrors at the edge of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box


def mirror_indices(start: int, stop: int, extent: int) -> NDArray[np.intp]:
    """Indices inside an axis of `extent` voxels that stand for positions `start` to `stop`, mirrored at both ends.

    The edge voxel is not repeated (`numpy.pad(mode="reflect")`), and a context longer than the axis reflects again and
    again. An axis of one voxel repeats it.

    >>> mirror_indices(-3, 7, 4).tolist()
    [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    >>> mirror_indices(-2, 2, 1).tolist()
    [0, 0, 0, 0]

    Args:
      start: first position, voxels; may be negative.
      stop: the position after the last, voxels; may pass `extent`.
      extent: length of the axis, voxels.

    Returns:
      Indices in [0, extent), shape (stop - start,).

    Raises:
      ValueError: the axis is empty.

    Source: Ronneberger, Fischer and Brox 2015, figure 2.
    """
    if extent < 1:
        raise ValueError(
            f"an axis of {extent} voxels has nothing to mirror: context beyond an edge needs at least 1 voxel inside. "
            "Check that the volume or the region of interest is not empty."
        )
    if extent == 1:
        return np.zeros(max(stop - start, 0), dtype=np.intp)
    period = 2 * (extent - 1)
    folded = np.arange(start, stop, dtype=np.intp) % period
    return np.minimum(folded, period - folded)


def read_mirrored(read: Callable[[Box], NDArray[Any]], shape: Sequence[int], box: Box) -> NDArray[Any]:
    """Read a box that may lie partly or wholly beyond a volume's edges, mirroring at the true edge.

    Only the smallest box that covers the mirrored voxels is read, in one call.

    Args:
      read: returns the voxels of a box inside the volume, shape `box.shape` and any trailing axes (channels).
      shape: extent of the volume in voxels, as many axes as `box`.
      box: what to read, in voxels of the volume.

    Returns:
      Array of shape `box.shape` and the reader's trailing axes, in the reader's dtype. A box that lies inside comes
      back as the reader gave it: a view where the reader returns views.

    Raises:
      ValueError: the box is empty, its number of axes differs from the volume's, an axis of the volume is empty, or
        the reader returned another shape than it was asked for.
    """
    _check_request(shape, box)
    axes = [mirror_indices(a, b, n) for a, b, n in zip(box.start, box.stop, shape, strict=True)]
    inside = Box(tuple(int(i.min()) for i in axes), tuple(int(i.max()) + 1 for i in axes))
    voxels = read(inside)
    if voxels.shape[: box.ndim] != inside.shape:
        raise ValueError(f"the reader returned shape {voxels.shape} for {inside}: expected {inside.shape} in front.")
    for axis, (indices, first) in enumerate(zip(axes, inside.start, strict=True)):
        # Axis by axis, and only where the box passes an edge: most blocks of a volume pass none.
        if box.start[axis] < 0 or box.stop[axis] > shape[axis]:
            voxels = np.take(voxels, indices - first, axis=axis)
    return voxels


def _check_request(shape: Sequence[int], box: Box) -> None:
    if len(shape) != box.ndim:
        raise ValueError(
            f"box {box} has {box.ndim} axes and the volume {tuple(shape)} has {len(shape)}: give the same."
        )
    if box.size == 0:
        raise ValueError(f"box {box} is empty, there is nothing to read: give stops above their starts.")
