"""Scores of 3D instances as CREMI and SNEMI3D report them: variation of information, adapted Rand error, CREMI score.

All of them read one table of overlaps, which blocks count apart (`contingency`); `finish` turns it into numbers.
Voxels whose truth is 0 are not scored: whoever counts the table puts 0 where the truth is unknown, too, as CREMI's own
evaluation does. Proposed segment 0 is a segment like any other, but where a convention says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from tessera.metrics.contingency import Contingency, Counts, Names, sum_by_id

Convention = Literal["cremi", "skimage"]


@dataclass(frozen=True, slots=True)
class RandError:
    """The adapted Rand error and what it is made of.

    Attributes:
      error: 1 - 2 x precision x recall / (precision + recall); 0 where both are the same.
      precision: of all pairs of voxels that the proposal joins, those that the truth joins: low where it merges.
      recall: of all pairs that the truth joins, those that the proposal joins: low where it splits.
    """

    error: float
    precision: float
    recall: float


@dataclass(frozen=True, slots=True)
class Fault:
    """One segment that costs information.

    Attributes:
      id: of a true segment that is split, or of a proposed one that is merged.
      bits: its part of VOI split or VOI merge.
      voxels: of it that are scored.
      parts: segments of the other side that it meets.
      largest: up to five of these, the largest first, with their voxels in common.
    """

    id: int
    bits: float
    voxels: int
    parts: int
    largest: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class InstanceScores:
    """What a segmentation is worth, and where it fails.

    Attributes:
      voxels: scored ones.
      true_segments: how many of them the truth has.
      proposed_segments: how many the proposal has there, 0 not counted.
      voi_split: H(proposal | truth), bits: what splits cost.
      voi_merge: H(truth | proposal), bits: what merges cost.
      rand_cremi: by the convention of CREMI and SNEMI3D.
      rand_skimage: by that of skimage.metrics.
      worst_splits: the true segments that cost most of VOI split.
      worst_merges: the proposed segments that cost most of VOI merge.
    """

    voxels: int
    true_segments: int
    proposed_segments: int
    voi_split: float
    voi_merge: float
    rand_cremi: RandError
    rand_skimage: RandError
    worst_splits: tuple[Fault, ...] = ()
    worst_merges: tuple[Fault, ...] = ()

    @property
    def voi(self) -> float:
        """VOI split + merge, bits."""
        return self.voi_split + self.voi_merge

    @property
    def cremi_score(self) -> float:
        """The geometric mean of VOI and CREMI's adapted Rand error; 0 is perfect."""
        return math.sqrt(max(self.rand_cremi.error, 0.0) * self.voi)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name; each Rand error says its convention."""
        rand = {
            f"adapted_rand_{part}_{convention}": value
            for convention, found in (("cremi", self.rand_cremi), ("skimage", self.rand_skimage))
            for part, value in asdict(found).items()
        }
        voi = {"voi": self.voi, "voi_split": self.voi_split, "voi_merge": self.voi_merge}
        return {**voi, **rand, "cremi_score": self.cremi_score}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        counts = {name: getattr(self, name) for name in ("voxels", "true_segments", "proposed_segments")}
        worst = {name: [asdict(fault) for fault in getattr(self, name)] for name in ("worst_splits", "worst_merges")}
        return {**self.metrics, **counts, **worst}


def finish(table: Contingency, worst: int = 10) -> InstanceScores:
    """The scores of a whole volume from its table of overlaps.

    Args:
      table: of all its blocks together; truth 0 is not scored.
      worst: how many of the worst splits and merges are listed.

    Raises:
      ValueError: nothing is scored.
    """
    scored = table.where(table.truth > 0)
    if len(scored.count) == 0:
        raise ValueError(
            f"none of the {table.total} voxels compared has a known true segment: there is nothing to score. Give "
            "labels in which objects have ids above 0, of the same place as the cells."
        )
    splits = _conditional_bits(scored.truth, scored.count, scored.total)
    merges = _conditional_bits(scored.proposal, scored.count, scored.total)
    proposed = scored.proposal_sizes[0]
    return InstanceScores(
        voxels=scored.total,
        true_segments=len(scored.truth_sizes[0]),
        proposed_segments=int(np.count_nonzero(proposed)),
        voi_split=float(splits[1].sum()),
        voi_merge=float(merges[1].sum()),
        rand_cremi=adapted_rand(table, "cremi"),
        rand_skimage=adapted_rand(table, "skimage"),
        worst_splits=_faults(splits, scored.truth, scored.proposal, scored.count, worst),
        worst_merges=_faults(merges, scored.proposal, scored.truth, scored.count, worst),
    )


def adapted_rand(table: Contingency, convention: Convention) -> RandError:
    """The adapted Rand error by one of two conventions, which differ by a few per cent on small volumes.

    `cremi`: over ordered pairs of voxels, a voxel with itself included. Proposed segment 0 joins nothing, and its
    voxels enter precision and recall with their share of all voxels, ignored ones included, as CREMI's code has it.
    `skimage`: a voxel makes no pair with itself, and proposed segment 0 is one segment.

    Args:
      table: truth 0 is not scored.
      convention: see above; say which a number has.

    Source: Arganda-Carreras et al. 2015; `cremi.evaluation.rand`; `skimage.metrics.adapted_rand_error`.
    """
    scored = table.where(table.truth > 0)
    joined = scored.where(scored.proposal > 0) if convention == "cremi" else scored
    loose = scored.total - joined.total
    # Once per voxel: +1/n of each loose one, or -1 of the pair that each voxel makes with itself.
    extra = loose / table.total if convention == "cremi" else -scored.total
    both = _squares(joined.count) + extra
    merged = _squares(joined.proposal_sizes[1]) + extra
    split = _squares(scored.truth_sizes[1]) + (0 if convention == "cremi" else extra)
    if merged + split == 0:  # every segment of either side is one voxel: there is no pair to be wrong about
        return RandError(0.0, 1.0, 1.0)
    return RandError(1 - 2 * both / (merged + split), _ratio(both, merged), _ratio(both, split))


def _squares(counts: Counts) -> float:
    """Sum of squares; in floats, for 10^12 voxels squared pass int64."""
    values = counts.astype(np.float64)
    return float(values @ values)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _conditional_bits(given: Names, count: Counts, total: int) -> tuple[Names, NDArray[np.float64], Counts]:
    """For each id of one side, what it adds to the entropy of the other side given this one.

    Returns:
      The ids, ascending; bits of each; voxels of each.
    """
    ids, place, sizes = sum_by_id(given, count)
    share = count / sizes[place]
    bits = np.bincount(place, -xlogy(count, share), len(ids)) / (total * math.log(2))
    return ids, bits, sizes


def _faults(
    found: tuple[Names, NDArray[np.float64], Counts], own: Names, other: Names, count: Counts, most: int
) -> tuple[Fault, ...]:
    """The ids of one side that cost most, with what they meet; those that cost nothing are no faults."""
    ids, bits, sizes = found
    costly = [i for i in np.argsort(-bits, kind="stable")[:most] if bits[i] > 0]
    met = [own == ids[i] for i in costly]
    return tuple(
        _fault(int(ids[i]), float(bits[i]), int(sizes[i]), other[mine], count[mine])
        for i, mine in zip(costly, met, strict=True)
    )


def _fault(name: int, bits: float, voxels: int, others: Names, shared: Counts) -> Fault:
    order = np.argsort(-shared, kind="stable")[:5]
    largest = tuple((int(others[i]), int(shared[i])) for i in order)
    return Fault(name, bits, voxels, len(others), largest)


@dataclass(frozen=True, slots=True)
class ScanRow:
    """What agglomeration up to one threshold is worth."""

    threshold: float
    scores: InstanceScores

    @property
    def metrics(self) -> dict[str, float]:
        """The threshold and the numbers by name."""
        return {"threshold": self.threshold, **self.scores.metrics}


def scan(table: Contingency, cells: Iterable[tuple[float, NDArray[np.integer[Any]]]]) -> tuple[ScanRow, ...]:
    """Score a segmentation at several thresholds of its agglomeration: the overlaps of its fragments tell it all.

    Args:
      table: of truth and fragments.
      cells: for each threshold, of each fragment the cell that it is a part of, by id.

    Raises:
      ValueError: nothing is scored, or the cells are those of other fragments.
    """
    return tuple(ScanRow(float(threshold), finish(table.renamed(names))) for threshold, names in cells)


def best_threshold(rows: Sequence[ScanRow]) -> float:
    """The threshold of the lowest VOI; of several the one in their middle, which is the furthest from a change.

    Raises:
      ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("no thresholds were scored: there is none to choose. Score at least one.")
    least = min(row.scores.voi for row in rows)
    found = [row.threshold for row in rows if math.isclose(row.scores.voi, least, abs_tol=1e-12)]
    return found[len(found) // 2]
