"""How a row of shards is cut out of sections, so that strips and tiles are decoded once and memory is bounded.

A row of shards is one shard high and deep, and as wide as the volume: 64 x 1024 x 30,000 voxels are 1.8 GiB. Whoever
makes one shard of it decodes every strip of 64 sections that crosses these 1,024 rows; with strips as wide as the
section, the next shard needs the same strips again.

    section z    strip  ==========================================      decoded once,
                        [ shard 0 ][ shard 1 ] ... [ shard 29 ]         cut into as many shards as memory allows

- Tiles that divide the shard touch one shard each: any shard can be made by itself. Where tiles and shards meet again
  after a few shards (tiles of 1,536, shards of 1,024: every 3), those few are made together.
- Strips, and tiles nearly as wide, want the whole row at once. So where nobody asked for a shape, shards become less
  deep, down to one chunk, and then less high, until a row is at most 512 MiB: 16 x 1024 x 30,000 are 469 MiB. That
  rule looks at the source alone and not at the memory of today's machine: a resumed job must find its own shards.
- A shard is at most 64 MiB, for a worker holds it several times while it is written.
- What still does not fit is made in groups of shards along x, each within the memory of a worker, and the strips are
  decoded once for each group: the plan says how often. Compressed pieces kept in memory, or decoded ones on a disk,
  would do with one decoding; the first fits for sparse sections only, the second wants gigabytes of scratch space on
  every node.
- Rows of pixels that are not compressed are read where they lie: nothing is decoded, whatever the shape.
- A PNG, and a page in one compressed strip, can be decoded only whole, again for each row of shards.

A shard is one task and one ledger row all the same. A group is a lane of tasks, one after the other on one worker,
which decodes the group with the first of them and keeps the others' voxels until they are asked for. Where a task ends
up elsewhere, after a death or a failure, its shard is decoded by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, lcm, prod

from tessera.geometry.blocks import BlockGrid

_ROW_BYTES = 512 * 2**20
_SHARD_BYTES = 64 * 2**20
_GIB = 2**30
# Python, NumPy, Zarr and Ray in a worker that did nothing yet.
_BASE_BYTES = 190 * 2**20
# Blocks that were taken out of their group and are being written: two at once, each with its encoded form, while the
# next group is decoded.
_BLOCKS_IN_WRITING = 6
BAND_BYTES = 4 * 2**20
_DECODERS = 4
_PLAIN_GROUP = 4
Segment = tuple[int, int] | None
"""Rows and columns of a strip or tile; None for plain rows."""


@dataclass(frozen=True)
class RowPlan:
    """How the shards of a row are made.

    Attributes:
      group: shards along x that are decoded together.
      decoders: sections decoded at once.
      decodings: how often a strip or tile is decoded at most for one row of shards; 0 for plain rows.
      memory_bytes: what a worker needs at most.
    """

    group: int
    decoders: int
    decodings: int
    memory_bytes: int

    def lane(self, grid: BlockGrid, index: int) -> int:
        """The number of the group that a block is in; blocks of one group follow each other in the grid.

        >>> plan = RowPlan(group=2, decoders=1, decodings=1, memory_bytes=0)
        >>> [plan.lane(BlockGrid((1, 2, 6), (1, 1, 2)), i) for i in range(6)]
        [0, 0, 1, 2, 2, 3]
        """
        row, column = divmod(index, grid.counts[2])
        return row * ceil(grid.counts[2] / self.group) + column // self.group


def row_shard(
    shape: Sequence[int], chunk: Sequence[int], shard: Sequence[int], itemsize: int, segment: Segment
) -> tuple[int, int, int]:
    """A shard of at most 64 MiB, of which a row holds whole strips, or tiles nearly as wide, within 512 MiB.

    Args:
      shape: of the volume, z, y, x.
      chunk: z, y, x.
      shard: the one that would be taken otherwise; a power of two of chunks on each axis.
      itemsize: bytes per voxel.
      segment: of the source.

    >>> row_shard((64, 30000, 30000), (16, 256, 256), (64, 1024, 1024), 1, (8, 30000))
    (16, 1024, 1024)
    >>> row_shard((64, 30000, 30000), (16, 256, 256), (64, 1024, 1024), 1, (512, 512))
    (64, 1024, 1024)
    """
    depth, height, width = shard
    while depth * height * width * itemsize > _SHARD_BYTES and depth > chunk[0] and depth // 2 % chunk[0] == 0:
        depth //= 2
    if segment is None or segment[1] < width:
        return depth, height, width
    together = _meeting(segment[1], width, shape[2]) * width
    while depth * height * together * itemsize > _ROW_BYTES:
        if depth > chunk[0] and depth // 2 % chunk[0] == 0:
            depth //= 2
        elif height > chunk[1] and height // 2 % chunk[1] == 0:
            height //= 2
        else:
            break
    return depth, height, width


def _meeting(segment_width: int, shard_width: int, extent: int) -> int:
    """Shards after which the edges of segments and shards meet again."""
    return min(lcm(segment_width, shard_width) // shard_width, ceil(extent / shard_width))


def plan_rows(grid: BlockGrid, itemsize: int, segment: Segment, pixel_bytes: int, memory_gib: float) -> RowPlan:
    """Choose how many shards are decoded together.

    Args:
      grid: the shards.
      itemsize: bytes of a voxel.
      segment: the largest strip or tile of the source.
      pixel_bytes: bytes of a stored pixel, of all its channels.
      memory_gib: of a worker.

    Raises:
      ValueError: not even one shard fits; says what would.
    """
    width, columns = grid.block[2], grid.counts[2]
    block, limit = prod(grid.block) * itemsize, memory_gib * _GIB
    wanted = _meeting(segment[1], width, grid.shape[2]) if segment else min(_PLAIN_GROUP, columns)
    decoders = _DECODERS if segment is None or prod(segment) * pixel_bytes <= BAND_BYTES else 1

    def needed(shards: int) -> int:
        rows = min(segment[0], grid.block[1]) if segment else 1
        band = max(BAND_BYTES, rows * min(shards * width, grid.shape[2]) * pixel_bytes)
        coded = prod(segment) * pixel_bytes if segment else 0
        # A band as read, as settled, and a segment with its encoded form.
        return _BASE_BYTES + (shards + _BLOCKS_IN_WRITING) * block + decoders * 2 * (band + coded)

    if needed(1) > limit:
        raise ValueError(_too_little(memory_gib, needed(1), block, segment, pixel_bytes))
    most = max(n for n in range(1, wanted + 1) if needed(n) <= limit)
    # Groups of one size rather than full ones and a rest.
    group = wanted if most == wanted else ceil(columns / ceil(columns / most))
    return RowPlan(group, decoders, _decodings(group, wanted, columns, segment, width), needed(group))


def _decodings(group: int, wanted: int, columns: int, segment: Segment, width: int) -> int:
    if segment is None:
        return 0
    if group % wanted == 0 or group >= columns:
        return 1
    return min(ceil(columns / group), ceil((segment[1] - 1) / (group * width)) + 1)


def _too_little(memory_gib: float, least: int, block: int, segment: Segment, pixel_bytes: int) -> str:
    coded = prod(segment) * pixel_bytes if segment else 0
    enough = ceil(least / _GIB * 20) / 20
    large = (
        f"with a strip, tile or PNG of {segment[0]}x{segment[1]} px, {coded / 2**20:.0f} MiB and decoded whole"
        if segment and coded > block
        else f"with those being written, each {block / 2**20:.0f} MiB"
    )
    smaller = "" if segment and coded > block else ", or a smaller --shard"
    return (
        f"memory_gib={memory_gib:g} is too little for a worker: one shard, {large}, needs {least / _GIB:.2f} GiB, and "
        f"workers would be killed one after the other. Try --memory_gib {enough:g}{smaller}."
    )
