"""Which tile: the one that computes a block with the fewest operations, of those that fit into memory.

    a block of 1,024 px, in tiles of       352         512         1,024
    operations of a U-Net, depth 4         1.34 x      1.13 x      1.00 x

A tile changes speed and memory, never a voxel, so this choice is free. Even tiles are weighed, as `tiles_of` cuts them:
a full tile and a sliver cost two halos.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from tessera.geometry.arithmetic import Arithmetic, AxisArithmetic
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.network_cost import NetworkCost


class NoTileFitsError(ValueError):
    """Not even the smallest tile fits into the memory."""


@dataclass(frozen=True, slots=True)
class TilePlan:
    """A tile for a block, and what it costs.

    Attributes:
      tile: useful voxels per pass, z, y, x.
      input_shape: what the network sees then, z, y, x.
      passes: per block.
      flops: operations per block.
      activation_bytes: the most that a pass holds between layers.
    """

    tile: tuple[int, int, int]
    input_shape: tuple[int, int, int]
    passes: int
    flops: int
    activation_bytes: int


def plan_tile(extents: Sequence[int], arithmetic: Arithmetic, network: NetworkCost, activation_bytes: int) -> TilePlan:
    """The legal tile of fewest operations that fits; of equals, the one that holds least.

    Args:
      extents: voxels of a block per axis, z, y, x, from the network's grid on: see `block_extents`.
      arithmetic: the network's.
      network: its layers' cost.
      activation_bytes: what a pass may hold between layers.

    Raises:
      NoTileFitsError: the smallest tile holds more; says how much.
    """
    choices = [list(_even(extent, axis)) for extent, axis in zip(extents, arithmetic.axes, strict=True)]
    z, y, x = ([useful + 2 * halo for useful, _ in cuts] for cuts, halo in zip(choices, arithmetic.halo, strict=True))
    seen = np.ix_(z, y, x)
    counts = prod(np.ix_(*[[count for _, count in cuts] for cuts in choices]))
    flops, held = counts * network.flops_of(seen), network.activation_bytes_of(seen)
    if held.min() > activation_bytes:
        least = _chosen(choices, held.argmin(), held.shape)
        raise NoTileFitsError(
            f"the smallest tile, {least}, holds {held.min() / 2**20:.0f} MiB of activations, and "
            f"{max(activation_bytes, 0) / 2**20:.0f} MiB are left for them"
        )
    flops = np.where(held <= activation_bytes, flops, np.iinfo(np.int64).max)
    best = np.lexsort((held.ravel(), flops.ravel()))[0]
    return given_tile(_chosen(choices, best, held.shape), extents, arithmetic, network)


def _chosen(choices: Sequence[Sequence[tuple[int, int]]], at: np.intp, shape: tuple[int, ...]) -> list[int]:
    return [cuts[int(index)][0] for cuts, index in zip(choices, np.unravel_index(at, shape), strict=True)]


def given_tile(tile: Sequence[int], extents: Sequence[int], arithmetic: Arithmetic, network: NetworkCost) -> TilePlan:
    """What any tile costs, cut as `tiles_of` cuts it; arguments as `plan_tile`'s."""
    cuts = [_cut(extent, most, axis) for extent, most, axis in zip(extents, tile, arithmetic.axes, strict=True)]
    (z, _), (y, _), (x, _) = cuts
    halo, passes = arithmetic.halo, prod(count for _, count in cuts)
    seen = (z + 2 * halo[0], y + 2 * halo[1], x + 2 * halo[2])
    return TilePlan((z, y, x), seen, passes, passes * network.flops(seen), network.activation_bytes(seen))


def _even(extent: int, axis: AxisArithmetic) -> Iterator[tuple[int, int]]:
    """(useful voxels, tiles) along one axis, each extent once, with as few tiles as it takes."""
    most = axis.useful_extent(extent)
    while most >= axis.useful_extent(1):
        useful, count = _cut(extent, most, axis)
        yield useful, count
        most = useful - axis.period


def _cut(extent: int, most: int, axis: AxisArithmetic) -> tuple[int, int]:
    """The same for at most `most` useful voxels a tile."""
    legal = max(axis.useful_extent(1), most - most % axis.period)
    useful = axis.useful_extent(-(-extent // -(-extent // legal)))
    return useful, -(-extent // useful)


def block_extents(grid: BlockGrid, start: Sequence[int], arithmetic: Arithmetic) -> tuple[int, ...]:
    """The most voxels of any block per axis, counted from the network's grid, on which tiles begin.

    >>> from tessera.geometry.arithmetic import fold, unet_records
    >>> block_extents(BlockGrid((8, 96, 96), (4, 48, 48)), (0, 0, 5), fold(unet_records(1)))
    (4, 48, 49)

    Args:
      grid: of blocks, in the output's voxels.
      start: where the output's voxel 0 lies in the volume.
      arithmetic: the network's.
    """
    most = []
    for axis, first, legal in zip(grid.axes, start, arithmetic.axes, strict=True):
        # Blocks meet the network's grid in phases that repeat after `period` blocks.
        bounds = [axis.bounds(index) for index in range(min(axis.count, legal.period))]
        most.append(max(stop - begin + (first + begin) % legal.period for begin, stop in bounds))
    return tuple(most)
