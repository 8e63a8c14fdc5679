"""The ISBI 2012 scores, so that a number printed here can stand beside a published one.

A section is scored alone (`score_section`, anywhere, in any order); `finish` turns the sections' statistics into the
reported means. V_Rand and V_Info judge flooded segments; the older Rand and pixel errors of the U-Net paper judge the
thresholded map itself. The warping error is left out: no independent values exist to check it with.

Source: Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image segmentation algorithms for connectomics",
with the January 2016 rescoring (foreground-restricted, lines of the flooding as singletons).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import xlogy
from skimage.segmentation import watershed

from tessera.metrics.contingency import count_overlaps

Segments = NDArray[np.int32]

# One float32 step below 1: a threshold of 1 itself would leave no pixel of a perfect proposal inside a cell.
JUST_BELOW_ONE = 1.0 - 2.0**-24
THRESHOLDS: tuple[float, ...] = (*(step / 10 for step in range(10)), JUST_BELOW_ONE)
BINARY_THRESHOLDS: tuple[float, ...] = (0.0,)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well two segmentations of the same pixels agree; all of it 1 where they are the same.

    Attributes:
      v_rand: harmonic mean of split and merge score.
      v_rand_split: AB / A, the recall of pairs: low where true segments are split.
      v_rand_merge: AB / B, the precision of pairs: low where true segments are merged.
      v_info: 2 MI / (H(truth) + H(proposal)), 0 where the proposal's entropy is 0.
    """

    v_rand: float
    v_rand_split: float
    v_rand_merge: float
    v_info: float


@dataclass(frozen=True, slots=True)
class ThresholdScores:
    """What one section says at one threshold.

    Attributes:
      flooded: agreement of the true segments with the flooded proposal.
      basin_rand: Rand F-score of the basins themselves, every other pixel a singleton (the paper's Rand error).
      true_positive: pixels that are cell in both.
      false_positive: pixels that are cell in the proposal alone.
      false_negative: pixels that are cell in the truth alone.
    """

    flooded: Agreement
    basin_rand: float
    true_positive: int
    false_positive: int
    false_negative: int


@dataclass(frozen=True, slots=True)
class SectionScores:
    """One section's statistics: small, picklable, and handed to `finish` in any order.

    Attributes:
      thresholds: ascending, in [0, 1).
      rows: one per threshold.
    """

    thresholds: tuple[float, ...]
    rows: tuple[ThresholdScores, ...]


@dataclass(frozen=True, slots=True)
class ThresholdMeans:
    """The reported values at one threshold: means over sections, except the pooled pixel error."""

    threshold: float
    v_rand: float
    v_rand_split: float
    v_rand_merge: float
    v_info: float
    rand_error: float
    pixel_error: float


@dataclass(frozen=True, slots=True)
class IsbiScores:
    """The scores of a stack: `at` a threshold chosen elsewhere (the headline), `best` for published tables.

    Attributes:
      sections: how many sections were scored.
      rows: one per threshold, ascending.
    """

    sections: int
    rows: tuple[ThresholdMeans, ...]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds scored, ascending."""
        return tuple(row.threshold for row in self.rows)

    @property
    def best_threshold(self) -> float:
        """The threshold of the highest V_Rand; the lowest such threshold where several tie."""
        return max(self.rows, key=lambda row: row.v_rand).threshold

    @property
    def robust_threshold(self) -> float:
        """The threshold to freeze: where V_Rand + V_Info - 2 x pixel error, smoothed over thresholds, is highest.

        On few sections V_Rand alone jumps with each cell that a threshold merges, and its maximum is where luck was:
        the sum is steadier, and a Gaussian of one step (0.1) of the grid asks the neighbours' opinion. On sections
        20-23 of ISBI 2012, chosen on two or three and judged on the rest, the rule lost 0.027 of V_Rand and 0.009 of
        pixel error against the best threshold there, the maximum of V_Rand 0.049 and 0.026
        (tests/benchmarks/threshold_rule.py). After training for a few minutes alone it is the other way round for
        V_Rand, 0.024 to 0.011: holes in membranes are then so many that only thick borders close them.
        """
        values = [row.v_rand + row.v_info - 2 * row.pixel_error for row in self.rows]
        smooth = ndimage.gaussian_filter1d(values, sigma=1.0, mode="nearest")
        # The grid's last threshold lies a rounding error below 1: no step of the grid, and never one to freeze.
        steps = [i for i, row in enumerate(self.rows) if row.threshold < JUST_BELOW_ONE] or [0]
        return self.rows[max(steps, key=lambda i: smooth[i])].threshold

    def at(self, threshold: float) -> dict[str, float]:
        """The scores at one of the thresholds scored, by name.

        Raises:
          ValueError: nothing was scored at this threshold.
        """
        for row in self.rows:
            if math.isclose(row.threshold, threshold, abs_tol=1e-9):
                return asdict(row)
        raise ValueError(
            f"threshold={threshold} was not scored: a value in between would be made up. "
            f"Try one of {list(self.thresholds)}, or score the sections with it."
        )

    def best(self) -> dict[str, float]:
        """Each metric's best value over thresholds; `threshold`, split and merge are those of the best V_Rand.

        Split and merge scores trade against each other, so that their own maxima (1, at absurd thresholds) say nothing.
        """
        return self.at(self.best_threshold) | {
            "v_info": max(row.v_info for row in self.rows),
            "rand_error": min(row.rand_error for row in self.rows),
            "pixel_error": min(row.pixel_error for row in self.rows),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return {"sections": self.sections, "best": self.best(), "rows": [asdict(row) for row in self.rows]}


def score_section(
    cell_probability: NDArray[np.floating[Any]],
    truth: NDArray[Any],
    thresholds: Sequence[float] = THRESHOLDS,
    known: NDArray[np.bool_] | None = None,
) -> SectionScores:
    """Score one section's cell probability at every threshold.

    Where only part of a section is annotated, it is scored as if it ended where knowledge does: true segments, basins
    and their flooding are those of the known pixels alone, and every score is restricted to them. So a section known
    inside a rectangle scores as that rectangle cut out, and nothing predicted elsewhere matters. Flooding the whole
    section instead would charge a proposal for joining, through unknown area, two known parts of what may be one cell.

    Thresholds and probabilities are compared in float32, so that a proposal scores the same in whichever precision it
    was kept. A binary proposal (0 and 1 only) needs `BINARY_THRESHOLDS` alone.

    Args:
      cell_probability: float, (y, x), in [0, 1]: 1 = inside a cell, 0 = membrane.
      truth: integer or bool, (y, x): > 0 inside cells; pixels <= 0 are membrane, which V_Rand, V_Info and the Rand
        error don't score. True segments are the 4-connected components of truth > 0, whatever their values.
      thresholds: ascending, each in [0, 1).
      known: bool, (y, x), False where nobody annotated, whatever `truth` says there; None where all is known.

    Raises:
      ValueError: wrong dtype, axes or range, shapes that differ, a truth without (known) cells, or bad thresholds.
    """
    _check_thresholds(thresholds)
    _check_proposal(cell_probability)
    _check_truth(truth, cell_probability.shape)
    inside = np.ones(truth.shape, bool) if known is None else known
    _check_known(inside, truth)
    probability = cell_probability.astype(np.float32)
    true_segments = connected_cells((truth > 0) & inside)
    seen: dict[int, ThresholdScores] = {}  # the masks are nested, so that two of the same size are the same mask
    rows = []
    for threshold in thresholds:
        cells = (probability > np.float32(threshold)) & inside
        size = int(np.count_nonzero(cells))
        if size not in seen:
            seen[size] = _score_mask(cells, true_segments, inside)
        rows.append(seen[size])
    return SectionScores(tuple(float(t) for t in thresholds), tuple(rows))


def finish(sections: Sequence[SectionScores]) -> IsbiScores:
    """Turn the statistics of a stack's sections into its scores; their order changes no bit of the result.

    Raises:
      ValueError: no sections, or sections scored at different thresholds.
    """
    if not sections:
        raise ValueError("no sections arrived: a mean over none is undefined. Score at least one section.")
    thresholds = sections[0].thresholds
    other = next((s.thresholds for s in sections if s.thresholds != thresholds), None)
    if other is not None:
        raise ValueError(
            f"sections were scored at different thresholds, {list(thresholds)} and {list(other)}: a mean would mix "
            f"them. Score every section with the same thresholds, such as THRESHOLDS."
        )
    columns = zip(*(section.rows for section in sections), strict=True)
    rows = tuple(_mean_row(t, column) for t, column in zip(thresholds, columns, strict=True))
    return IsbiScores(len(sections), rows)


def connected_cells(cells: NDArray[np.bool_]) -> Segments:
    """The 4-connected components of a section's cells, int32, (y, x), numbered from 1; 0 elsewhere."""
    segments: Segments = ndimage.label(cells)[0]  # the default structure is 4-connected
    return segments


def flood(basins: Segments, inside: NDArray[np.bool_] | None = None) -> Segments:
    """Grow the basins over everything else inside; where two meet, a one-pixel line stays 0.

    Vincent-Soille on a flat landscape: 4-connected, first in first out. skimage has one habit of its own: a flood may
    step over a line into a pocket behind it. Against the plain rule that moves the V_Rand of a noisy section by up to
    0.0015 (smoothed raw data) and that of a good one by less than 0.0001.

    Args:
      basins: int32, (y, x), 0 = not a basin. Without any basin all of it stays 0.
      inside: bool, (y, x), what may be flooded; everything by default.
    """
    flooded: Segments = watershed(basins == 0, basins, mask=inside, connectivity=1, watershed_line=True)
    return flooded


def agreement(truth: NDArray[np.integer[Any]], proposal: NDArray[np.integer[Any]]) -> Agreement:
    """Compare two segmentations of the same N scored pixels.

    With p_ij the fraction of pixels with truth i and proposal j: a_i its sum over all j, b_j its sum over i, and every
    pixel with proposal 0 a segment of its own (1/N of the pixels).

    Args:
      truth: integer, (pixels,), all > 0.
      proposal: integer, (pixels,), 0 = a singleton.

    Source: Arganda-Carreras et al. 2015, as rescored in January 2016.
    """
    table = count_overlaps(truth, proposal)
    proposed = table.where(table.proposal > 0)
    n, single = table.total, table.total - proposed.total
    a, b = table.truth_sizes[1] / n, proposed.proposal_sizes[1] / n
    joint = proposed.count / n
    rand_a = float(np.sum(a**2))
    rand_b = float(np.sum(b**2)) + single / n**2
    rand_ab = float(np.sum(joint**2)) + single / n**2
    return Agreement(
        v_rand=2 * rand_ab / (rand_a + rand_b),
        v_rand_split=rand_ab / rand_a,
        v_rand_merge=rand_ab / rand_b,
        v_info=_information_score(a, b, joint, single / n * math.log(n)),
    )


def _information_score(
    a: NDArray[np.float64], b: NDArray[np.float64], joint: NDArray[np.float64], singles: float
) -> float:
    """V_Info in nats; `singles` is the entropy z ln N that the singletons add to the proposal and to the joint."""
    truth_entropy = -float(np.sum(xlogy(a, a)))
    proposal_entropy = -float(np.sum(xlogy(b, b))) + singles
    joint_entropy = -float(np.sum(xlogy(joint, joint))) + singles
    if proposal_entropy == 0:  # one segment holds every pixel: it says nothing, and 0/0 may follow
        return 0.0
    return 2 * (truth_entropy + proposal_entropy - joint_entropy) / (truth_entropy + proposal_entropy)


def _score_mask(cells: NDArray[np.bool_], true_segments: Segments, inside: NDArray[np.bool_]) -> ThresholdScores:
    """Score one thresholded section; nothing of `cells` and `true_segments` lies outside."""
    scored = true_segments > 0
    truth = true_segments[scored]
    basins = connected_cells(cells)
    return ThresholdScores(
        flooded=agreement(truth, flood(basins, inside)[scored]),
        basin_rand=agreement(truth, basins[scored]).v_rand,
        true_positive=int(np.count_nonzero(cells & scored)),
        false_positive=int(np.count_nonzero(cells & ~scored)),
        false_negative=int(np.count_nonzero(~cells & scored)),
    )


def _mean_row(threshold: float, column: Sequence[ThresholdScores]) -> ThresholdMeans:
    """Means over sections at one threshold; exact sums (`fsum`), so that the order of sections cannot matter."""

    def mean(value: Callable[[ThresholdScores], float]) -> float:
        return math.fsum(value(row) for row in column) / len(column)

    hits = 2 * sum(row.true_positive for row in column)
    misses = sum(row.false_positive + row.false_negative for row in column)
    return ThresholdMeans(
        threshold=threshold,
        v_rand=mean(lambda row: row.flooded.v_rand),
        v_rand_split=mean(lambda row: row.flooded.v_rand_split),
        v_rand_merge=mean(lambda row: row.flooded.v_rand_merge),
        v_info=mean(lambda row: row.flooded.v_info),
        rand_error=1 - mean(lambda row: row.basin_rand),
        pixel_error=1 - hits / (hits + misses),
    )


def _check_thresholds(thresholds: Sequence[float]) -> None:
    rising = all(low < high for low, high in pairwise(thresholds))
    if not thresholds or not rising or not all(0 <= t < 1 for t in thresholds):
        raise ValueError(
            f"thresholds={list(thresholds)} must be ascending and each in [0, 1): cells are probability > threshold, "
            f"so that 1 leaves none. Try THRESHOLDS, {list(THRESHOLDS)}."
        )


def _check_proposal(probability: NDArray[Any]) -> None:
    if probability.ndim != 2:
        raise ValueError(
            f"cell_probability has shape {probability.shape}: a section is (y, x), and scoring a stack as one would "
            f"join its sections. Try score_section(stack[z], truth[z]) for each z."
        )
    if not np.issubdtype(probability.dtype, np.floating):
        raise ValueError(
            f"cell_probability is {probability.dtype}: probabilities are floats in [0, 1], and stored bytes above 1 "
            f"would all pass every threshold. Try probability.astype('float32') / 255 for uint8."
        )
    if probability.size == 0:
        raise ValueError(f"cell_probability has shape {probability.shape}: a section without pixels has no score.")
    low, high = float(probability.min()), float(probability.max())
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise ValueError(
            f"cell_probability spans {low} to {high}: it must lie in [0, 1] without NaN, else thresholds cut "
            f"elsewhere than they say. Try the sigmoid or softmax of a network's logits."
        )


def _check_truth(truth: NDArray[Any], shape: tuple[int, ...]) -> None:
    if truth.shape != shape:
        raise ValueError(
            f"truth has shape {truth.shape} and cell_probability {shape}: pixels would be compared with others than "
            f"their own. Crop both to the same (y, x)."
        )
    if not (np.issubdtype(truth.dtype, np.integer) or truth.dtype == np.bool_):
        raise ValueError(
            f"truth is {truth.dtype}: labels are integers (> 0 inside cells, 0 on membrane), and a fraction is no "
            f"label. Try (truth > 0).astype('uint8')."
        )
    if not np.any(truth > 0):
        raise ValueError(
            "truth has no label > 0: only pixels inside cells are scored, so that nothing would be. Leave this "
            "section out, or check that cells and membrane are not swapped (cells are > 0)."
        )


def _check_known(known: NDArray[Any], truth: NDArray[Any]) -> None:
    if known.dtype != np.bool_ or known.shape != truth.shape:
        raise ValueError(
            f"known is {known.dtype} of shape {known.shape} and truth has shape {truth.shape}: other pixels would be "
            "left out. Give a bool for each pixel of truth, such as target != 255."
        )
    if not (known & (truth > 0)).any():
        raise ValueError(
            "truth has no label > 0 at a known pixel: only known pixels inside cells are scored, so that nothing would "
            "be. Leave this section out, or annotate a cell in it."
        )
