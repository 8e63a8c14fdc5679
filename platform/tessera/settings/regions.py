"""Regions of interest in nanometers: what to predict, said without knowing which level is read.

    nm        0 -------- 500 ------- 1000          a volume of 50 nm sections, not translated
    section   | 0 | 1 | ... | 9 | 10 | ... |       0:500 are sections 0-9; 0:501 are 0-10

Positions are the volume's own: its translation, if it has one, plus index times voxel size, counted at the finest
level; that is where a voxel begins. A range is rounded outward to whole voxels: all that was asked for is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil, floor

from tessera.geometry.boxes import Box

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})?\s*:\s*({_NUMBER})?\s*")
# Of a voxel: 0.3 / 0.1 is not above 3.
_SLACK = 1e-6


def parse_roi_nm(
    text: str,
    shape: Sequence[int],
    voxel_size_nm: Sequence[float] | None,
    corner_nm: Sequence[float] | None,
) -> Box:
    """The voxels that a region in nanometers touches.

    >>> parse_roi_nm("0:500, 402:, :16", (20, 512, 512), (50, 4, 4), (0, 0, 0))
    Box(start=(0, 100, 0), stop=(10, 512, 4))

    Args:
      text: half-open ranges z, y, x; a bound that is left out is the volume's.
      shape: of the volume that is read, z, y, x.
      voxel_size_nm: of the same.
      corner_nm: where its voxel 0 begins.

    Raises:
      ValueError: it is not three ranges, one is empty, backwards or passes the volume, or the size is unknown.
    """
    if voxel_size_nm is None or corner_nm is None:
        raise ValueError(
            f"roi_nm={text!r}, but the volume does not say how large its voxels are. Give --voxel_size_nm, such as "
            "[50, 4, 4], or the region in voxels, --roi."
        )
    edges = [(c, c + n * s) for c, n, s in zip(corner_nm, shape, voxel_size_nm, strict=True)]
    legal = ",".join(f"{a:.10g}:{b:.10g}" for a, b in edges)
    ranges = [_RANGE.fullmatch(part) for part in text.split(",")]
    if len(ranges) != 3 or None in ranges:
        raise ValueError(f"roi_nm={text!r} is not three ranges z, y, x, in nanometers. Try {legal}.")
    start, stop = [], []
    for found, size, (first, last), n in zip(filter(None, ranges), voxel_size_nm, edges, shape, strict=True):
        bounds = [float(given) if given else edge for given, edge in zip(found.groups(), (first, last), strict=True)]
        a, b = ((bound - first) / size for bound in bounds)
        if not (a < b and a >= -_SLACK and b <= n + _SLACK):
            raise ValueError(
                f"roi_nm={text!r} is empty, runs backwards or passes the volume, which reaches from "
                f"{legal.replace(':', ' to ').replace(',', ', ')} nm (z, y, x). Try {legal}."
            )
        start.append(min(max(0, floor(a + _SLACK)), n - 1))
        stop.append(min(n, max(ceil(b - _SLACK), start[-1] + 1)))
    return Box(tuple(start), tuple(stop))
