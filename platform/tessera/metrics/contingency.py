"""How often each true segment meets each proposed one: the only thing that Rand and information scores read.

    truth     1 1 1 2 2 0          (1, 7) 2   (1, 9) 1
    proposal  7 7 9 9 9 9    -->   (2, 9) 2   (0, 9) 1     and tables of two blocks add up

Kept sparse: ids of a stitched volume reach 10^9, and even a dense table of a section's 300 true segments by 10,000
proposed specks would cost more than the section itself. A table holds 24 bytes per pair of ids that meet, whatever the
number of voxels and the size of the ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.integer[Any]]
Names = NDArray[np.uint64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Contingency:
    """Joint counts of two labellings of the same voxels; only pairs that occur are listed, each once.

    Attributes:
      truth: uint64, (pairs,), the true segment of each pair, ascending.
      proposal: uint64, (pairs,), its proposed segment, ascending within one true segment; 0 where there is none.
      count: int64, (pairs,), voxels in both, all >= 1.
    """

    truth: Names
    proposal: Names
    count: Counts

    @property
    def total(self) -> int:
        """Number of voxels counted."""
        return int(self.count.sum())

    @property
    def truth_sizes(self) -> tuple[Names, Counts]:
        """The true ids, ascending, and the voxels of each, those without a proposal included."""
        ids, _, sizes = sum_by_id(self.truth, self.count)
        return ids, sizes

    @property
    def proposal_sizes(self) -> tuple[Names, Counts]:
        """The proposed ids, ascending, and the voxels of each; id 0, if there, counts those without one."""
        ids, _, sizes = sum_by_id(self.proposal, self.count)
        return ids, sizes

    def where(self, chosen: NDArray[np.bool_]) -> Contingency:
        """The table of some of its pairs.

        Args:
          chosen: bool, (pairs,).
        """
        return Contingency(self.truth[chosen], self.proposal[chosen], self.count[chosen])

    def renamed(self, names: NDArray[np.integer[Any]]) -> Contingency:
        """The table of a proposal whose segments are merged, without counting a voxel again.

        Args:
          names: of each proposed id the segment that it becomes a part of, by id; 0 stays 0.

        Raises:
          ValueError: an id has no entry.

        >>> table = count_overlaps(np.array([1, 1, 2]), np.array([3, 4, 4]))
        >>> table.renamed(np.array([0, 1, 2, 7, 7])).count.tolist()
        [2, 1]
        """
        most = int(self.proposal.max(initial=0))
        if most >= len(names):
            raise ValueError(
                f"the table has the proposed id {most}, but names end at {len(names) - 1}: they are those of another "
                "segmentation. Take both from the same fragments."
            )
        return _summed(self.truth, names[self.proposal].astype(np.uint64), self.count)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays by name, for a file."""
        return {"truth": self.truth, "proposal": self.proposal, "count": self.count}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Contingency:
        """What `to_arrays` gave."""
        return cls(arrays["truth"], arrays["proposal"], arrays["count"])


def count_overlaps(truth: Ids, proposal: Ids) -> Contingency:
    """Count every pair of ids that share a voxel.

    Args:
      truth: non-negative integer, any shape.
      proposal: non-negative integer, the same shape.

    Raises:
      ValueError: the two differ in shape, or hold negative ids.

    >>> table = count_overlaps(np.array([1, 1, 2]), np.array([3, 3, 0]))
    >>> table.truth.tolist(), table.proposal.tolist(), table.count.tolist()
    ([1, 2], [3, 0], [2, 1])
    """
    if truth.shape != proposal.shape:
        raise ValueError(
            f"truth has shape {truth.shape} and proposal {proposal.shape}: overlaps pair them pixel by pixel, and the "
            f"wrong ones would meet. Crop both to the same pixels."
        )
    a, b = _checked(truth, "truth"), _checked(proposal, "proposal")
    if a.size == 0:
        return _summed(_names(a), _names(b), np.empty(0, np.int64))
    # Segments are runs of voxels along x: sorting the runs and not the voxels is what makes this fast.
    starts = np.concatenate([[0], np.flatnonzero((a[1:] != a[:-1]) | (b[1:] != b[:-1])) + 1])
    return _summed(_names(a[starts]), _names(b[starts]), np.diff(starts, append=a.size))


def merge_tables(tables: Sequence[Contingency]) -> Contingency:
    """The table of all voxels that the tables counted, in whatever order they come.

    >>> one = count_overlaps(np.array([1, 2]), np.array([3, 3]))
    >>> merge_tables([one, one]).count.tolist()
    [2, 2]
    """
    empty = np.empty(0, np.uint64)
    return _summed(
        np.concatenate([empty, *(table.truth for table in tables)]),
        np.concatenate([empty, *(table.proposal for table in tables)]),
        np.concatenate([np.empty(0, np.int64), *(table.count for table in tables)]),
    )


def _checked(ids: Ids, name: str) -> Ids:
    if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
        raise ValueError(f"{name} holds the negative id {ids.min()}: ids are names of segments, 0 is none.")
    return ids.ravel()


def _names(ids: Ids) -> Names:
    return ids.astype(np.uint64)


def _summed(truth: Names, proposal: Names, count: Counts) -> Contingency:
    """Equal pairs as one, with their counts added; sorted, so that the same voxels give the same table."""
    if len(count) == 0:
        return Contingency(truth, proposal, count)
    order = np.lexsort((proposal, truth))
    truth, proposal = truth[order], proposal[order]
    first = np.concatenate([[True], (truth[1:] != truth[:-1]) | (proposal[1:] != proposal[:-1])])
    starts = np.flatnonzero(first)
    return Contingency(truth[starts], proposal[starts], np.add.reduceat(count[order], starts))


def sum_by_id(ids: Names, count: Counts) -> tuple[Names, NDArray[np.intp], Counts]:
    """Add counts of equal ids; exact, where float weights (np.bincount's) round past 2**53.

    Returns:
      The ids, ascending; the place of each entry's id among them; int64, the sum of each.
    """
    found, place = np.unique(ids, return_inverse=True)
    sums = np.zeros(len(found), np.int64)
    np.add.at(sums, place, count)
    return found, place, sums
