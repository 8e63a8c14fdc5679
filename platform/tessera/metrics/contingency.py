"""How often each true segment meets each proposed one: the only thing that Rand and information scores read.

Kept sparse: a noisy proposal has thousands of specks, and a dense table of 300 true segments by 10,000 proposed ones
would cost more than the section itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

Ids = NDArray[np.integer[Any]]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Contingency:
    """Joint counts of two labellings of the same pixels; only pairs that occur are listed.

    Attributes:
      truth: int64, (pairs,), the true segment of each pair.
      proposal: int64, (pairs,), its proposed segment; 0 where the proposal has none.
      count: int64, (pairs,), pixels in both, all >= 1.
    """

    truth: Counts
    proposal: Counts
    count: Counts

    @property
    def total(self) -> int:
        """Number of pixels counted."""
        return int(self.count.sum())

    @property
    def truth_sizes(self) -> Counts:
        """int64, (largest true id + 1,): pixels of each true segment, those without a proposal included."""
        return _sizes(self.truth, self.count)

    @property
    def proposal_sizes(self) -> Counts:
        """int64, (largest proposed id + 1,): pixels of each proposed segment; index 0 counts those without one."""
        return _sizes(self.proposal, self.count)


def count_overlaps(truth: Ids, proposal: Ids) -> Contingency:
    """Count every pair of ids that share a pixel.

    Memory follows the number of pixels and the largest ids, never their product: hand over compact ids.

    Args:
      truth: non-negative integer, (pixels,).
      proposal: non-negative integer, (pixels,), the same pixels in the same order.

    Raises:
      ValueError: the two differ in shape.

    >>> table = count_overlaps(np.array([1, 1, 2]), np.array([3, 3, 0]))
    >>> table.truth.tolist(), table.proposal.tolist(), table.count.tolist()
    ([1, 2], [3, 0], [2, 1])
    """
    if truth.shape != proposal.shape:
        raise ValueError(
            f"truth has shape {truth.shape} and proposal {proposal.shape}: overlaps pair them pixel by pixel, and the "
            f"wrong ones would meet. Crop both to the same pixels."
        )
    shape = (int(truth.max(initial=0)) + 1, int(proposal.max(initial=0)) + 1)
    pairs = (truth.ravel(), proposal.ravel())
    table = coo_array((np.ones(truth.size, np.int64), pairs), shape=shape).tocsr().tocoo()  # CSR sums the duplicates
    return Contingency(table.row.astype(np.int64), table.col.astype(np.int64), table.data)


def _sizes(ids: Counts, count: Counts) -> Counts:
    """Pixels of each id; exact, where float weights (np.bincount's) round past 2**53."""
    sizes = np.zeros(int(ids.max(initial=0)) + 1, np.int64)
    np.add.at(sizes, ids, count)
    return sizes
