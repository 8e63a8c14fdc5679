"""From local ids and seam edges to one consecutive numbering of the whole volume, without holding the volume.

Every label first gets a provisional id, the block's offset + its local id, which needs the blocks' counts alone:

    block     0        1           2
    counts    3        2           4
    ids       1 2 3    4 5         6 7 8 9        offsets 0, 3, 5, 9
    edges         3----4     5-----6              components {3, 4}, {5, 6}
    final     1 2 3    3 4         4 5 6 7        each smallest member keeps its place; the others close up

A label is then its provisional id less the number of absorbed ids before it, so that only absorbed ids are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Numbering:
    """Final ids of every block's labels, given out block by block; 16 bytes per absorbed id, 8 per block.

    Attributes:
      offsets: uint64, (blocks + 1,), provisional ids before each block.
      absorbed: uint64, ascending: provisional ids that are not the smallest of their component.
      targets: uint64, as long: their final ids.
    """

    offsets: Ids
    absorbed: Ids
    targets: Ids

    @property
    def total(self) -> int:
        """Number of components in the volume; final ids are 1..total."""
        return int(self.offsets[-1]) - len(self.absorbed)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.offsets) - 1

    def lookup(self, block: int) -> Ids:
        """The final id of each local id of a block.

        Args:
          block: its index in the counts that the numbering was made from.

        Returns:
          uint64, (count + 1,), indexed by local id; background stays 0.

        Raises:
          ValueError: there is no such block.
        """
        if not 0 <= block < self.blocks:
            raise ValueError(
                f"block={block} is not one of this numbering's {self.blocks}: its labels would take another block's "
                f"ids. Try an index from 0 to {self.blocks - 1}."
            )
        start, stop = int(self.offsets[block]), int(self.offsets[block + 1])
        first, last = np.searchsorted(self.absorbed, self.offsets[block : block + 2], side="right")
        local = (self.absorbed[first:last] - self.offsets[block]).astype(np.intp)
        kept = np.ones(stop - start + 1, np.uint64)
        kept[0], kept[local] = start - first, 0
        final: Ids = np.cumsum(kept, dtype=np.uint64)
        final[0], final[local] = 0, self.targets[first:last]
        return final


def provisional_offsets(counts: Sequence[int]) -> Ids:
    """How many labels lie in the blocks before each block, and in all of them.

    Args:
      counts: number of labels of each block, in the order of the grid.

    Returns:
      uint64, (blocks + 1,).

    Raises:
      ValueError: a count is negative.

    >>> provisional_offsets([3, 2, 4]).tolist()
    [0, 3, 5, 9]
    """
    if any(count < 0 for count in counts):
        raise ValueError(
            f"counts have a negative value, {min(counts)}: blocks would share provisional ids. "
            f"A block without labels counts 0."
        )
    return np.cumsum(np.array([0, *counts], np.uint64), dtype=np.uint64)


def provisional_edges(pairs: Ids, offset_a: int | np.uint64, offset_b: int | np.uint64) -> Ids:
    """Seam edges between two blocks' local ids as edges between provisional ids.

    Args:
      pairs: uint64, (n, 2), local ids (in a, in b), as `seam_edges` gives them.
      offset_a: labels before block a, from `provisional_offsets`.
      offset_b: labels before block b.

    Raises:
      ValueError: the pairs are not uint64 or not (n, 2).
    """
    _check_edges(pairs)
    return pairs + np.array([offset_a, offset_b], np.uint64)


def resolve(edges: Ids) -> tuple[Ids, Ids]:
    """Find the component of every id that an edge names.

    The result does not depend on the order of the edges, nor of the ids in one. It takes at most about 100 bytes per
    edge while it runs.

    Args:
      edges: uint64, (n, 2), ids that are the same object; repeats and (id, id) are allowed.

    Returns:
      The ids named, uint64, ascending; and the smallest id of each one's component, uint64, as long.

    Raises:
      ValueError: the edges are not uint64 or not (n, 2).

    >>> ids, roots = resolve(np.array([[7, 5], [9, 7], [2, 3]], np.uint64))
    >>> ids.tolist(), roots.tolist()
    ([2, 3, 5, 7, 9], [2, 2, 5, 5, 5])
    """
    _check_edges(edges)
    if len(edges) == 0:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    ids, index = np.unique(edges, return_inverse=True)  # compact: the graph's size is that of the edges, not the ids
    ends = index.reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(ids), len(ids)))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)  # ids ascend, so that a component's first is its smallest
    return ids, ids[first[component]]


def consecutive_numbering(counts: Sequence[int], edges: Ids) -> Numbering:
    """Number the components of all blocks 1..N, in the order of each one's smallest (block, local id).

    Args:
      counts: number of labels of each block, in the order of the grid.
      edges: uint64, (n, 2), provisional ids (`provisional_edges`) that are the same object, in any order.

    Raises:
      ValueError: a negative count, edges that are not uint64 (n, 2), or an edge that names no block's label.
    """
    offsets = provisional_offsets(counts)
    ids, roots = resolve(edges)
    if len(ids) and not (ids[0] >= 1 and ids[-1] <= offsets[-1]):
        wrong = ids[-1] if ids[0] >= 1 else ids[0]
        raise ValueError(
            f"edges name the id {wrong}, but the blocks' counts allow 1 to {offsets[-1]}: the edge and the counts come "
            f"from different runs, and strangers would be joined. Take both from the same blocks."
        )
    moved = ids != roots
    absorbed, roots = ids[moved], roots[moved]
    before = np.searchsorted(absorbed, roots).astype(np.uint64)  # uint64 - int64 would become float64 and round
    return Numbering(offsets, absorbed, roots - before)


def apply_lookup(labels: NDArray[np.unsignedinteger[Any]], lookup: Ids) -> Ids:
    """Replace every local id by its final id.

    Args:
      labels: unsigned integer, any shape, local ids.
      lookup: uint64, (count + 1,), from `Numbering.lookup`.

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
            f"rounded or cut. Take it from Numbering.lookup(block)."
        )
    largest = int(labels.max(initial=0))
    if largest >= len(lookup):
        raise ValueError(
            f"labels reach {largest}, but the lookup ends at {len(lookup) - 1}: it is another block's, and objects "
            f"would be lost. Take Numbering.lookup of the block these labels come from."
        )
    final: Ids = np.take(lookup, labels)
    return final


def _check_edges(edges: NDArray[Any]) -> None:
    if edges.dtype != np.uint64 or edges.ndim != 2 or edges.shape[1] != 2:
        raise ValueError(
            f"edges are {edges.dtype} of shape {edges.shape}: they must be uint64, (n, 2); signed ids mixed with "
            f"uint64 become float64 and lose those above 2**53. Try np.empty((0, 2), np.uint64) for none."
        )
