"""From the sums of all blocks (seams.py) to one verdict: do the faces of this job stand out?

Three questions are asked, each against what the planes that are no faces show: are all faces a little off, or those of
blocks; is one face far off; do sections differ more where a block or tile ends. Their limits are frozen: the study
tests/benchmarks/seam_audit.py tells how often a correct job fails with them, and what faults are caught.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from tessera.metrics.seams import BlockSeams, FaceSums, ReferenceSums, added, section_means

Verdict = Literal["passed", "failed", "not applicable"]
Blocks = Callable[[], Iterable[tuple[int, BlockSeams]]]
"""Index and sums of every block; called several times, so that none is kept."""

TOGETHER = 4.0
"""Standard errors by which all faces, or all faces of blocks, may lie above planes that are none."""
ALONE = 0.001
"""Chance that any face of a correct job is called bad by itself, were scores normal; `_INFLATED` is for that they are
not quite."""
_INFLATED = 1.15
_LEAST_PLANES, _LEAST_RUNS = 4, 8
"""Planes of a phase that are needed to say what is usual there; runs that make a face worth judging by itself."""
_LEAST_SECTIONS = 19
"""Planes between sections that are no faces: with fewer, the greatest of them would be exceeded by chance."""


@dataclass(frozen=True, slots=True)
class JudgedFace:
    """One face of one block, and by how many standard errors it lies above planes that are none.

    Attributes:
      block: linear index; None for a face between sections, which is judged over all blocks that have it.
      axis: z, y or x.
      plane: it lies between this voxel of the output and the one before, on that axis.
      kind: block or tile.
      score: standard errors.
    """

    block: int | None
    axis: str
    plane: int
    kind: str
    score: float


@dataclass(frozen=True)
class SeamAudit:
    """What was found.

    Attributes:
      verdict: not applicable where there is no face, or nothing to compare them with.
      scores: standard errors of each question that could be asked: `faces`, `block faces`, `worst face`, `sections`.
      limits: above which the job fails, of the same questions.
      faces: how many were judged.
      references: planes of blocks that they were compared with.
      worst: the most suspicious faces, worst first.
    """

    verdict: Verdict
    scores: Mapping[str, float]
    limits: Mapping[str, float]
    faces: int
    references: int
    worst: tuple[JudgedFace, ...]

    @property
    def exceeded(self) -> list[str]:
        """Questions whose limit was passed."""
        return [name for name, score in self.scores.items() if score > self.limits[name]]

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"worst": [asdict(face) for face in self.worst]}


def finish(blocks: Blocks, block_sections: int, most: int = 10) -> SeamAudit:
    """Judge a job.

    Args:
      blocks: see `Blocks`.
      block_sections: sections of a block: the planes between sections at which blocks meet are its multiples.
      most: faces to list.
    """
    references = {key: sums for key, sums in added(b for _, b in blocks()).items() if sums.planes >= _LEAST_PLANES}
    together, worst, judged = _judge_faces(blocks, references, most)
    scores, limits = dict(together), dict.fromkeys(together, TOGETHER)
    if worst:
        scores["worst face"] = worst[0].score
        limits["worst face"] = float(_INFLATED * scipy.stats.norm.isf(ALONE / max(judged, 1)))
    sections = _judge_sections(*section_means(b for _, b in blocks()), block_sections)
    if sections:
        scores["sections"], limits["sections"] = sections[0], TOGETHER
        worst = heapq.nlargest(most, [*worst, *sections[1]], key=lambda face: face.score)
    failed = any(score > limits[name] for name, score in scores.items())
    verdict: Verdict = "failed" if failed else "passed" if scores else "not applicable"
    compared = int(sum(sums.planes for sums in references.values()))
    return SeamAudit(verdict, _rounded(scores), _rounded(limits), judged, compared, tuple(worst))


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _judge_faces(
    blocks: Blocks, references: Mapping[tuple[int, int], ReferenceSums], most: int
) -> tuple[dict[str, float], list[JudgedFace], int]:
    """Scores of all faces and of block faces together; the worst ones; how many were judged."""
    together = _inflation(references)
    sums: dict[str, dict[tuple[int, int], NDArray[np.float64]]] = {
        name: defaultdict(lambda: np.zeros(4)) for name in ("faces", "block faces")
    }
    judged = 0

    def each() -> Iterator[JudgedFace]:
        nonlocal judged
        for index, block in blocks():
            for face in block.faces:
                usual = references.get((face.axis, face.phase))
                if usual is None or not face.runs:
                    continue
                judged += 1
                for name in ("faces", "block faces") if face.kind == "block" else ("faces",):
                    sums[name][face.axis, face.phase] += (1, face.runs, face.total, face.squares)
                if face.runs >= _LEAST_RUNS:
                    score = _alone(face, usual, together)
                    yield JudgedFace(index, "zyx"[face.axis], face.plane, face.kind, round(score, 3))

    worst = heapq.nlargest(most, each(), key=lambda face: face.score)
    scores = {name: _all_of(own, references, together) for name, own in sums.items() if own}
    return scores, worst, judged


def _inflation(references: Mapping[tuple[int, int], ReferenceSums]) -> float:
    """By how much the variance of a plane's sum exceeds that of independent runs."""
    spread = sum(sums.spread for sums in references.values())
    return max(1.0, sum(sums.plane_spread for sums in references.values()) / spread) if spread > 0 else 1.0


def _alone(face: FaceSums, usual: ReferenceSums, inflation: float) -> float:
    """Standard errors of one face; its own spread or the usual one, whichever is greater."""
    own = face.squares - 2 * usual.mean * face.total + usual.mean**2 * face.runs
    variance = max(own, face.runs * usual.spread / max(usual.runs, 1.0))
    return float((face.total - usual.mean * face.runs) / np.sqrt(max(inflation * variance, 1e-9)))


def _all_of(
    sums: Mapping[tuple[int, int], NDArray[np.float64]],
    references: Mapping[tuple[int, int], ReferenceSums],
    inflation: float,
) -> float:
    """Standard errors of faces taken together, each axis and phase against its own references."""
    above = variance = 0.0
    for key, (_, runs, total, squares) in sums.items():
        usual = references[key]
        above += total - usual.mean * runs
        variance += squares - 2 * usual.mean * total + usual.mean**2 * runs
        # What is usual is an estimate, too.
        variance += (runs / max(usual.runs, 1.0)) ** 2 * usual.spread
    return float(above / np.sqrt(max(inflation * variance, 1e-9)))


def _judge_sections(
    means: Mapping[int, float], tiles: Iterable[int], block_sections: int
) -> tuple[float, list[JudgedFace]] | None:
    """By how much sections differ more at faces than elsewhere, and at which; None where too few planes tell.

    A section that is itself unlike its neighbours differs from both: a plane is held against the greater of the two
    beside it.
    """
    compared = {
        plane: float(np.log(mean / max(means[plane - 1], means[plane + 1])))
        for plane, mean in means.items()
        if plane - 1 in means and plane + 1 in means
    }
    meet = set(tiles)
    if all(plane in meet for plane in compared if plane % block_sections):
        meet = set()  # tiles of one section: every plane is a face of theirs, and tells nothing
    kinds = {plane: "block" if plane % block_sections == 0 else "tile" for plane in compared}
    at_faces = {plane: value for plane, value in compared.items() if kinds[plane] == "block" or plane in meet}
    elsewhere = [value for plane, value in compared.items() if plane not in at_faces]
    if not at_faces or len(elsewhere) < _LEAST_SECTIONS:
        return None
    usual, spread = float(np.mean(elsewhere)), max(float(np.std(elsewhere, ddof=1)), 1e-9)
    faces = [
        JudgedFace(None, "z", plane, kinds[plane], round((value - usual) / spread, 3))
        for plane, value in at_faces.items()
    ]
    return _beyond_chance(list(at_faces.values()), elsewhere), faces


def _beyond_chance(at_faces: list[float], elsewhere: list[float]) -> float:
    """Standard errors between two means of few planes; at most 0 where their ranks alone might be chance."""
    spread = np.std(elsewhere, ddof=1) * np.sqrt(1 / len(at_faces) + 1 / len(elsewhere))
    errors = (np.mean(at_faces) - np.mean(elsewhere)) / max(spread, 1e-9)
    # As far out in the normal's tail as this is in Student's.
    score = float(scipy.stats.norm.isf(max(scipy.stats.t.sf(errors, len(elsewhere) - 1), 1e-300)))
    by_rank = scipy.stats.mannwhitneyu(at_faces, elsewhere, alternative="greater").pvalue
    return score if by_rank <= 0.05 else min(score, 0.0)
