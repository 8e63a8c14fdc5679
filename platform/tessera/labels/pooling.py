"""Coarser labels: each voxel of a level is the id that most of those it covers have; ids are names, never averaged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mode_pool(labels: NDArray[Any], factors: Sequence[int]) -> NDArray[Any]:
    """The most frequent id of each window; of equally frequent ones the smallest.

    A window that passes the far edge counts what lies inside; extents are rounded up.

    Args:
      labels: bool or integer, of any number of axes; its voxel 0 begins a window.
      factors: extent of the window, an entry per axis.

    Returns:
      The same dtype.

    >>> mode_pool(np.array([[7, 7, 5], [3, 4, 9]], np.uint64), (2, 2)).tolist()
    [[7, 5]]
    """
    parts = [
        labels[tuple(slice(o, None, f) for o, f in zip(offset, factors, strict=True))]
        for offset in product(*(range(f) for f in factors))
    ]
    best, most = parts[0].copy(), np.zeros(parts[0].shape, np.uint8)
    for candidate in parts:
        votes = _votes(candidate, parts)
        inside = tuple(slice(0, n) for n in candidate.shape)
        known, kept = most[inside], best[inside]
        better = (votes > known) | ((votes == known) & (candidate < kept))
        known[better], kept[better] = votes[better], candidate[better]
    return best


def _votes(candidate: NDArray[Any], parts: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    """How many voxels of each window have the candidate's id."""
    votes = np.zeros(candidate.shape, np.uint8)
    for part in parts:
        both = tuple(slice(0, min(a, b)) for a, b in zip(candidate.shape, part.shape, strict=True))
        votes[both] += candidate[both] == part[both]
    return votes
