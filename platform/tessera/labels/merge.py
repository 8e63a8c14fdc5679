"""From local ids and what touches across seams to one consecutive numbering, without holding volume, labels or edges.

Only labels that touch a block's face can be one with another block's: the rim. Rim labels alone are numbered through
the volume, joined and remembered; all other labels of a block are numbered on after its rim.

    block          0            1          2
    labels         1 2 3 4      1 2        1 2 3
    rim            2 4          1 2        3           rim numbers 0 1 | 2 3 | 4, edges 1--2, 3--4
    kept           2 4          2          -           the smallest rim number of each object keeps its place
    final, rim     1 2          2 5        5           ... and the others take its id
    final, inner   3 4          -          6 7
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BlockIds:
    """What a block's worker needs to give its labels their final ids.

    Attributes:
      rim: uint64, (rim labels,): the final id of each, in the order of local ids.
      before: the block's inner labels take the ids that follow this one.
    """

    rim: Ids
    before: int

    def lookup(self, count: int, rim: NDArray[np.unsignedinteger[Any]]) -> Ids:
        """The final id of each local id.

        Args:
          count: labels of the block.
          rim: unsigned integer, ascending: local ids of its rim labels.

        Returns:
          uint64, (count + 1,), indexed by local id; background stays 0.

        Raises:
          ValueError: the rim is another block's.
        """
        if len(rim) != len(self.rim) or (len(rim) and not 1 <= int(rim[0]) <= int(rim[-1]) <= count):
            raise ValueError(
                f"{len(rim)} rim labels of {count}, but {len(self.rim)} were numbered: they are another block's, and "
                "its labels would take strangers' ids. Take both from the same block."
            )
        final: Ids = np.zeros(count + 1, np.uint64)
        inner = np.ones(count + 1, bool)
        inner[0], inner[rim] = False, False
        final[rim] = self.rim
        final[inner] = np.arange(self.before + 1, self.before + 1 + count - len(rim), dtype=np.uint64)
        return final


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """Final ids of every block's labels, given out block by block; 8 bytes per rim label, 24 per block.

    Attributes:
      starts: int64, (blocks + 1,): rim labels before each block.
      before: int64, (blocks + 1,): final ids before each block, and in all.
      kept: int64, (blocks,): rim labels of each block that keep their place.
      finals: uint64, (rim labels,): the final id of each.
    """

    starts: Indices
    before: Indices
    kept: Indices
    finals: Ids

    @property
    def total(self) -> int:
        """Number of objects in the volume; final ids are 1..total."""
        return int(self.before[-1])

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.kept)

    def of(self, block: int) -> BlockIds:
        """The share of one block.

        Args:
          block: its index in the counts that the numbering was made from.

        Raises:
          ValueError: there is no such block.
        """
        if not 0 <= block < self.blocks:
            raise ValueError(
                f"block={block} is not one of this numbering's {self.blocks}: its labels would take another block's "
                f"ids. Try an index from 0 to {self.blocks - 1}."
            )
        rim = self.finals[self.starts[block] : self.starts[block + 1]].copy()  # a view would travel with all of them
        return BlockIds(rim, int(self.before[block] + self.kept[block]))


def running_starts(counts: Sequence[int] | Indices) -> Indices:
    """How many there are before each block, and in all.

    >>> running_starts([3, 2, 4]).tolist()
    [0, 3, 5, 9]

    Args:
      counts: of each block, in the order of the grid.

    Returns:
      int64, (blocks + 1,).

    Raises:
      ValueError: a count is negative.
    """
    if any(count < 0 for count in counts):
        raise ValueError(
            f"counts have a negative value, {min(counts)}: blocks would share numbers. A block without any counts 0."
        )
    return np.cumsum(np.array([0, *counts], np.int64))


def consecutive_numbering(labels: Sequence[int], rims: Sequence[int], roots: Indices) -> Numbering:
    """Number the objects of all blocks 1..N: by the first block that has a part of each, its rim before its inner ones.

    Args:
      labels: number of labels of each block, in the order of the grid.
      rims: how many of them are rim labels.
      roots: int64, (rim labels,): of each the smallest rim number of its object, from `DisjointSets.roots`.

    Raises:
      ValueError: a block has more rim labels than labels, or the roots are those of other blocks.
    """
    starts = running_starts(rims)
    if len(labels) != len(rims) or any(rim > count for rim, count in zip(rims, labels, strict=True)):
        raise ValueError(
            f"{len(labels)} blocks with {sum(labels)} labels, {len(rims)} with {sum(rims)} rim labels: the rim is part "
            "of a block's labels. Take both counts from the same blocks."
        )
    if len(roots) != starts[-1]:
        raise ValueError(
            f"{len(roots)} roots for {starts[-1]} rim labels: they come from different runs, and strangers would be "
            "joined. Take both from the same blocks."
        )
    keeps = roots == np.arange(len(roots))
    kept = _sums(keeps, starts)
    before = running_starts(np.asarray(labels, np.int64) - np.diff(starts) + kept)
    places = np.repeat(before[:-1] - running_starts(kept)[:-1], np.diff(starts)).astype(np.int64)
    places += np.cumsum(keeps)  # of those that are kept: a number within the block, after the blocks before it
    return Numbering(starts, before, kept, places[roots].astype(np.uint64))


def _sums(flags: NDArray[np.bool_], starts: Indices) -> Indices:
    """How many flags are set in each block's stretch."""
    running = np.concatenate([[0], np.cumsum(flags)])
    return np.asarray(running[starts[1:]] - running[starts[:-1]], np.int64)


def apply_lookup(labels: NDArray[np.unsignedinteger[Any]], lookup: Ids) -> Ids:
    """Replace every local id by its final id.

    Args:
      labels: unsigned integer, any shape, local ids.
      lookup: uint64, (count + 1,), from `BlockIds.lookup`.

    Returns:
      uint64, the shape of `labels`.

    Raises:
      ValueError: labels are not unsigned integers, the lookup is not uint64 (n,), or a label passes its end.
    """
    if not np.issubdtype(labels.dtype, np.unsignedinteger):
        raise ValueError(
            f"labels are {labels.dtype}: local ids are unsigned integers, and a negative one would take its id from "
            f"the lookup's far end. Try labels.astype('uint32')."
        )
    if lookup.dtype != np.uint64 or lookup.ndim != 1 or len(lookup) == 0:
        raise ValueError(
            f"lookup is {lookup.dtype} of shape {lookup.shape}: it must be uint64, (count + 1,), or final ids are "
            f"rounded or cut. Take it from BlockIds.lookup."
        )
    largest = int(labels.max(initial=0))
    if largest >= len(lookup):
        raise ValueError(
            f"labels reach {largest}, but the lookup ends at {len(lookup) - 1}: it is another block's, and objects "
            f"would be lost. Take the lookup of the block these labels come from."
        )
    final: Ids = np.take(lookup, labels)
    return final
