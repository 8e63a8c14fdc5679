"""Block grids: what one task computes and one ledger row records.

    chunk (what a reader decodes) < shard (what one writer writes) <= block (one task, one row)

A block is a whole number of output shards, so that no two tasks ever write one shard: a partial shard write is an
unlocked read-modify-write of the whole of it, and loses data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from operator import add, mul

from tessera.geometry.boxes import Box


@dataclass(frozen=True, slots=True)
class BlockAxis:
    """One axis of a block grid: half-open voxel intervals, the last one clipped.

    >>> BlockAxis(extent=10, block=4).bounds(2)
    (8, 10)
    """

    extent: int
    block: int

    def __post_init__(self) -> None:
        if self.extent < 1 or self.block < 1:
            raise ValueError(
                f"extent {self.extent} and block {self.block} must both be at least 1 voxel: an empty axis has no "
                "blocks. Check the volume's shape or the region of interest."
            )

    @property
    def count(self) -> int:
        """Number of blocks on this axis."""
        return -(-self.extent // self.block)

    def bounds(self, index: int) -> tuple[int, int]:
        """First voxel and the one past the last of block `index`."""
        start = index * self.block
        return start, min(start + self.block, self.extent)


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """Blocks that cover an array of `shape` exactly once, numbered in z, y, x order; `counts` of them on each axis."""

    shape: tuple[int, ...]
    block: tuple[int, ...]
    # Kept, and not derived each time: a driver asks for the boxes of millions of blocks.
    counts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.block):
            raise ValueError(f"shape {self.shape} and block {self.block} have different numbers of axes.")
        object.__setattr__(self, "counts", tuple(axis.count for axis in self.axes))

    @property
    def axes(self) -> tuple[BlockAxis, ...]:
        """The grid, axis by axis."""
        return tuple(BlockAxis(extent, block) for extent, block in zip(self.shape, self.block, strict=True))

    def __len__(self) -> int:
        return prod(self.counts)

    def position(self, index: int) -> tuple[int, ...]:
        """Grid position of linear block `index`.

        >>> BlockGrid((4, 4, 4), (2, 2, 2)).position(5)
        (1, 0, 1)
        """
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} is outside a grid of {len(self)} blocks.")
        position = []
        for count in reversed(self.counts):
            index, at = divmod(index, count)
            position.append(at)
        return tuple(reversed(position))

    def index(self, position: Sequence[int]) -> int | None:
        """Linear index of a grid position; None outside the grid."""
        linear = 0
        for at, count in zip(position, self.counts, strict=True):
            if not 0 <= at < count:
                return None
            linear = linear * count + at
        return linear

    def box(self, index: int) -> Box:
        """The voxels of linear block `index`."""
        start = tuple(map(mul, self.position(index), self.block))
        return Box(start, tuple(map(min, map(add, start, self.block), self.shape)))

    def neighbour(self, index: int, offset: Sequence[int]) -> int | None:
        """Linear index of the block at a grid offset from `index`; None outside the grid."""
        return self.index([at + step for at, step in zip(self.position(index), offset, strict=True)])

    def boxes(self) -> Iterator[tuple[int, Box]]:
        """All blocks in order."""
        return ((index, self.box(index)) for index in range(len(self)))


def check_alignment(block: Sequence[int], shard: Sequence[int], shape: Sequence[int]) -> None:
    """Refuse a block that is not a whole number of output shards.

    An axis on which one block covers the whole array cannot split a shard, and passes.

    Raises:
      ValueError: two tasks would write one shard; a legal block is named.
    """
    aligned = [b % s == 0 or b >= n for b, s, n in zip(block, shard, shape, strict=True)]
    if not all(aligned):
        legal = tuple(max(1, round(b / s)) * s for b, s in zip(block, shard, strict=True))
        raise ValueError(
            f"block={tuple(block)} is not a multiple of the output shard {tuple(shard)}: two tasks would write one "
            f"shard and lose data. Try block={legal}."
        )
