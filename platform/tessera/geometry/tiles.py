"""The tiles of a block: what the network sees in one pass.

Tiles exist only inside a worker. Their useful boxes start on multiples of the network's period, counted from voxel 0
of the volume, and so do those of every other block, region of interest and resume: that is why any tiling gives the
same voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from tessera.geometry.arithmetic import Arithmetic, AxisArithmetic
from tessera.geometry.boxes import Box


@dataclass(frozen=True, slots=True)
class Tile:
    """One pass of the network.

    Attributes:
      useful: the voxels it yields after the crop; on the period's grid, so it may pass the block's edges.
      keep: those of them that are the block's.
    """

    useful: Box
    keep: Box


def tiles_of(core: Box, tile: Sequence[int], arithmetic: Arithmetic) -> Iterator[Tile]:
    """Cut `core` into tiles of at most `tile` useful voxels per axis, all of one shape.

    Args:
      core: the block, in the volume's voxels.
      tile: the most useful voxels per axis, z, y, x; rounded down to a legal extent, at least one period.
      arithmetic: the network's.

    >>> from tessera.geometry.arithmetic import fold, unet_records
    >>> [str(t.useful) for t in tiles_of(Box((0, 5, 0), (1, 40, 30)), (1, 32, 32), fold(unet_records(1)))]
    ['[0:1, 4:22, 0:30]', '[0:1, 22:40, 0:30]']
    """
    spans = [
        _spans(start, stop, most, axis)
        for start, stop, most, axis in zip(core.start, core.stop, tile, arithmetic.axes, strict=True)
    ]
    for corner in product(*spans):
        useful = Box(tuple(a for a, _ in corner), tuple(b for _, b in corner))
        yield Tile(useful, useful.clipped(core))


def tile_planes(core: Box, tile: Sequence[int], arithmetic: Arithmetic) -> tuple[tuple[int, ...], ...]:
    """Where the tiles of `core` meet, axis by axis: plane p lies between voxels p - 1 and p.

    >>> from tessera.geometry.arithmetic import fold, unet_records
    >>> tile_planes(Box((0, 5, 0), (2, 40, 30)), (1, 32, 32), fold(unet_records(1)))
    ((1,), (22,), ())
    """
    bounds = zip(core.start, core.stop, tile, arithmetic.axes, strict=True)
    return tuple(tuple(a for a, _ in _spans(start, stop, most, axis)[1:]) for start, stop, most, axis in bounds)


def _spans(start: int, stop: int, most: int, axis: AxisArithmetic) -> list[tuple[int, int]]:
    origin = start - start % axis.period
    length = stop - origin
    most = max(axis.useful_extent(1), most - most % axis.period)
    count = -(-length // most)
    # Even tiles waste less than full ones and a sliver; the last may pass `stop` by less than a period each.
    extent = axis.useful_extent(-(-length // count))
    return [(origin + i * extent, origin + (i + 1) * extent) for i in range(count) if origin + i * extent < stop]


def widest_context(core: Box, tile: Sequence[int], arithmetic: Arithmetic) -> Box:
    """The input that all tiles of `core` read together: one read serves them all."""
    useful = [t.useful for t in tiles_of(core, tile, arithmetic)]
    start = tuple(min(b.start[i] for b in useful) for i in range(core.ndim))
    stop = tuple(max(b.stop[i] for b in useful) for i in range(core.ndim))
    return arithmetic.input_box(Box(start, stop))
