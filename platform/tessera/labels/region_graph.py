"""What lies between fragments: of each two that touch, the area of contact and the membrane probability along it.

A contact is a pair of voxels that share a face and belong to two fragments; its probability is the higher of the two,
for a membrane of one voxel lies on one side of it. Contacts are counted and summed as integers and kept as histograms,
so that the graphs of blocks add up to the whole volume's, whatever the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint64]
Counts = NDArray[np.int64]

BINS = 32
"""Of a histogram, evenly over the 256 steps of probability: quantiles are within 1/32."""
STEPS = 255
"""Of probability, as bytes hold it."""


@dataclass(frozen=True, slots=True, eq=False)
class RegionGraph:
    """Fragments that touch; each pair, in each of the two ways, once, in ascending order.

    Attributes:
      a: uint64, (contacts,), the smaller id of each pair.
      b: uint64, the larger.
      across: bool: whether the pair touches from section to section, along z, or within sections.
      area: int64: pairs of voxels.
      total: int64: sum of their probabilities, in steps of 1/255.
      histogram: int64, (contacts, BINS): of their probabilities.
    """

    a: Ids
    b: Ids
    across: NDArray[np.bool_]
    area: Counts
    total: Counts
    histogram: Counts

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns().items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of {lengths} rows: a contact is one row of each. Take all from one graph.")

    def __len__(self) -> int:
        return len(self.a)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Its arrays by name, as a table holds them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def mean(self) -> NDArray[np.float64]:
        """Mean membrane probability of each contact."""
        return means(self.area, self.total)

    def quantile(self, share: float) -> NDArray[np.float64]:
        """The probability that `share` of each contact does not pass, within 1/32.

        Raises:
          ValueError: the share is none.
        """
        return quantiles(self.histogram, share)


def means(area: Counts, total: Counts) -> NDArray[np.float64]:
    """Mean probabilities from areas and sums of steps."""
    return np.asarray(total / (float(STEPS) * np.maximum(area, 1)), np.float64)


def quantiles(histogram: Counts, share: float) -> NDArray[np.float64]:
    """The probability that a share of each histogram does not pass, within 1/32.

    Args:
      histogram: int64, (n, BINS).
      share: 0 to 1.

    Raises:
      ValueError: the share is none.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} is none: at least 0, at most 1. Try 0.5, the median.")
    running = np.cumsum(histogram, axis=1)
    # The middle of the first bin up to which so many voxels lie.
    bins = (running < np.maximum(share * running[:, -1], 1)[:, None]).sum(axis=1)
    return np.asarray((bins + 0.5) / BINS, np.float64)


COLUMNS = tuple(field.name for field in fields(RegionGraph))


def no_contacts() -> RegionGraph:
    """A graph without a contact."""
    ids, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    return RegionGraph(ids, ids, np.empty(0, bool), counts, counts, np.empty((0, BINS), np.int64))


def contacts_of(fragments: Ids, membrane: NDArray[np.uint8], core: Sequence[int]) -> RegionGraph:
    """The contacts whose first voxel lies in a block.

    Args:
      fragments: uint64, (z, y, x), the block and, where there is more, the next plane beyond each far face; 0 is none.
      membrane: uint8, as large: 255 times probability.
      core: the block's own extent, z, y, x.

    Raises:
      ValueError: the arrays do not fit each other, or the block.
    """
    if fragments.shape != membrane.shape or any(
        n not in (size, size + 1) for n, size in zip(fragments.shape, core, strict=True)
    ):
        raise ValueError(
            f"fragments of {fragments.shape} and probability of {membrane.shape} for a block of {tuple(core)}: both "
            "are the block with at most one plane more on each axis, or contacts would be counted twice."
        )
    parts = [_along(axis, *found) for axis in range(3) for found in _pairs(fragments, membrane, core, axis)]
    return merged(parts) if parts else no_contacts()


def _pairs(
    fragments: Ids, membrane: NDArray[np.uint8], core: Sequence[int], axis: int
) -> Iterator[tuple[Ids, Ids, NDArray[np.uint8]]]:
    """Both ids and the higher probability of each contact along an axis, slab by slab: none at all yields nothing."""
    own = tuple(slice(0, size) for size in core)
    for z in range(core[0]):
        first = (slice(z, z + 1), *own[1:])
        last = tuple(
            slice(part.start + 1, min(part.stop + 1, n)) if k == axis else part
            for k, (part, n) in enumerate(zip(first, fragments.shape, strict=True))
        )
        a, b = fragments[first], fragments[last]
        if not b.size:
            continue
        within = tuple(slice(0, n) for n in b.shape)
        a = a[within]
        touch = (a != b) & (a > 0) & (b > 0)
        if touch.any():
            yield a[touch], b[touch], np.maximum(membrane[first][within][touch], membrane[last][touch])


def _along(axis: int, a: Ids, b: Ids, probability: NDArray[np.uint8]) -> RegionGraph:
    ids, where = np.unique(np.concatenate([a, b]), return_inverse=True)
    half = len(where) // 2
    low, high = np.minimum(where[:half], where[half:]), np.maximum(where[:half], where[half:])
    keys, group = np.unique(low * len(ids) + high, return_inverse=True)
    bins = group * BINS + probability // ((STEPS + 1) // BINS)
    return RegionGraph(
        ids[keys // len(ids)],
        ids[keys % len(ids)],
        np.full(len(keys), axis == 0),
        np.bincount(group, minlength=len(keys)),
        _summed(probability.astype(np.int64), group, len(keys)),
        np.bincount(bins, minlength=len(keys) * BINS).reshape(-1, BINS),
    )


def _summed(values: Counts, group: NDArray[np.intp], groups: int) -> Counts:
    """Sums of integers by group; (n,) or (n, width)."""
    sums = np.zeros((groups, *values.shape[1:]), np.int64)
    np.add.at(sums, group, values)
    return sums


def merged(graphs: Sequence[RegionGraph]) -> RegionGraph:
    """The graph of all blocks from those of each."""
    whole = RegionGraph(*(np.concatenate([getattr(graph, name) for graph in graphs]) for name in COLUMNS))
    return combined(whole, whole.a, whole.b)


def combined(graph: RegionGraph, a: Ids, b: Ids, *, directions: bool = True) -> RegionGraph:
    """The contacts under other names: what then is the same pair adds up, and what is one with itself is left out.

    Args:
      graph: the contacts.
      a: uint64, (contacts,), the new name of each one's `a`.
      b: the same of `b`.
      directions: keep contacts across sections apart from those within; without it all are `across` False.
    """
    low, high = np.minimum(a, b), np.maximum(a, b)
    across = graph.across if directions else np.zeros(len(graph), bool)
    apart = np.flatnonzero(low != high)
    order = apart[np.lexsort((across[apart], high[apart], low[apart]))]
    low, high, across = low[order], high[order], across[order]
    new = np.ones(len(order), bool)
    new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1]) | (across[1:] != across[:-1])
    starts = np.flatnonzero(new)
    if not len(starts):
        return no_contacts()
    sums = (np.add.reduceat(getattr(graph, name)[order], starts, axis=0) for name in ("area", "total", "histogram"))
    return RegionGraph(low[starts], high[starts], across[starts], *sums)
