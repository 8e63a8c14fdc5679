"""Which of many numbered things are one: a union-find that takes its edges in batches and forgets them.

Only one integer per thing stays, whatever the number of edges, so that 10^8 edges are joined in the memory of the
labels that they name. The root of a set is its smallest member; it does not depend on the order of the edges, nor on
how they are cut into batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Indices = NDArray[np.int64]

_ROOTS_AT_ONCE = 1 << 22
_EDGES_AT_ONCE = 1 << 21  # about 300 MB while they are joined


class DisjointSets:
    """Sets of the things 0 .. count - 1, each alone at first; 8 bytes a thing.

    >>> sets = DisjointSets(6)
    >>> sets.join(np.array([[4, 2], [5, 4]]))
    >>> sets.join(np.array([[0, 1]]))
    >>> sets.roots().tolist()
    [0, 0, 2, 3, 2, 2]

    Args:
      count: how many things there are.

    Raises:
      ValueError: the count is negative.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"count={count} is negative: things are numbered from 0. None at all is 0.")
        # Of each thing one that is in its set and not larger; that of a root is itself.
        self._parents: Indices = np.arange(count, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._parents)

    def join(self, edges: NDArray[Any]) -> None:
        """Make one set of the sets at both ends of each edge.

        Args:
          edges: integer, (n, 2); repeats and edges from a thing to itself are allowed.

        Raises:
          ValueError: the edges are not integers (n, 2), or name a thing that there is not.
        """
        self._check(edges)
        for first in range(0, len(edges), _EDGES_AT_ONCE):
            self._join(edges[first : first + _EDGES_AT_ONCE].astype(np.int64, copy=False))

    def roots(self) -> Indices:
        """The smallest member of each thing's set: int64, (count,)."""
        for first in range(0, len(self), _ROOTS_AT_ONCE):
            # Parents are never larger: those of earlier things are roots by now, so that one step is nearly always it.
            self._find(np.arange(first, min(first + _ROOTS_AT_ONCE, len(self))))
        return self._parents

    def _join(self, edges: Indices) -> None:
        a, b = self._find(edges[:, 0]), self._find(edges[:, 1])
        apart = a != b
        ends = np.concatenate([a[apart], b[apart]])
        if not len(ends):
            return
        ids, ends = np.unique(ends, return_inverse=True)  # compact: the graph is that of the batch, not of all things
        half = len(ends) // 2
        ones = np.ones(half, np.int8)
        graph = coo_array((ones, (ends[:half].astype(np.int32), ends[half:].astype(np.int32))), shape=(len(ids),) * 2)
        _, component = connected_components(graph, directed=False)
        _, first = np.unique(component, return_index=True)  # ids ascend, so that a component's first is its smallest
        self._parents[ids] = ids[first[component]]

    def _find(self, things: Indices) -> Indices:
        """The root of each thing; their paths are shortened to one step."""
        roots = self._parents[things]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parents[things] = roots
        return roots

    def _check(self, edges: NDArray[Any]) -> None:
        if edges.dtype.kind not in "iu" or edges.ndim != 2 or edges.shape[1] != 2:
            raise ValueError(
                f"edges are {edges.dtype} of shape {edges.shape}: they must be integers, (n, 2); others would be "
                "rounded or paired wrongly. Try np.empty((0, 2), np.int64) for none."
            )
        if len(edges) and not (edges.min() >= 0 and edges.max() < len(self)):
            raise ValueError(
                f"edges name {edges.min()} to {edges.max()}, but there are 0 to {len(self) - 1}: they come from "
                "another run, and strangers would be joined. Take edges and counts from the same blocks."
            )
