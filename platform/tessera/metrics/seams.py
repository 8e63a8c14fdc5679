"""Whether the faces of blocks and tiles stand out in a prediction: summable statistics of a block, then one verdict.

    voxels    ... a  b | c  d ...        a plane between two voxels, across one axis
    jump          (a - 3 b + 3 c - d) / 2: what is left of the step c - b where content is smooth, in log odds
    score         of 16 pixels along the plane: how much larger its jumps are than those of six planes beside it

Faces are compared with planes at the same phase modulo the network's period, which are no faces: pooling leaves its
own grid in every output, and that is no seam. A score lies between -1 and 1 and depends on its own surroundings alone:
neither dense membranes nor one bad spot can carry a plane away. Saturated voxels, 0 or 255 on both sides, say nothing
and are left out.

Sections differ by themselves, so faces between sections are compared, section by section, with other pairs of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

REACH = 8
"""Voxels on each side of a plane that its score looks at."""
MOST_REFERENCES = 48
"""Planes of one phase that a block is asked for at most: more of them would tell little more."""

_RUN, _PART = 16, 4  # a score is of 16 pixels, whose jumps are summed by fours: one sign over a few pixels is a step
_BESIDE = (-6, -5, -4, 4, 5, 6)
_FLAT = 0.02  # jumps below are the rounding of bytes; in log odds over the range of a byte's
_SLAB_VOXELS = 2**20

Bytes = NDArray[np.uint8]
Valid = NDArray[np.bool_]
Floats = NDArray[np.float64]


def _log_odds() -> NDArray[np.float32]:
    """Of each byte, over their range: a change in what is all but sure counts as much as one in what is not."""
    q = np.arange(256)
    odds = np.log((q + 0.5) / (255.5 - q))
    return np.asarray(odds / (odds[-1] - odds[0]), np.float32)


_LOG_ODDS = _log_odds()


@dataclass(frozen=True)
class AxisPlanes:
    """Where faces lie across one axis of a block, in the output's voxels; plane p lies between voxels p - 1 and p.

    Attributes:
      start: the block's first voxel.
      stop: the one past its last.
      extent: of the whole output.
      tiles: planes inside the block at which one tile ends and the next begins.
      period: planes are alike modulo this.
      origin: what the raw volume counts where the output counts 0.
    """

    start: int
    stop: int
    extent: int
    tiles: tuple[int, ...]
    period: int
    origin: int

    def phase(self, plane: int) -> int:
        """Its phase on the grid anchored at voxel 0 of the raw volume."""
        return (plane + self.origin) % self.period

    def faces(self) -> dict[int, str]:
        """Kind of each face that can be scored: the block's first plane is its own, the last one its neighbour's."""
        own = {self.start: "block"} | dict.fromkeys(self.tiles, "tile")
        return {plane: kind for plane, kind in own.items() if self._is_scored(plane)}

    def references(self, phase: int) -> list[int]:
        """Planes of that phase that are no faces, spread over the block."""
        first = self.start + (phase - self.phase(self.start)) % self.period
        taken = {self.start, *self.tiles}
        found = [p for p in range(first, self.stop, self.period) if p not in taken and self._is_scored(p)]
        if len(found) <= MOST_REFERENCES:
            return found
        return [found[i] for i in np.linspace(0, len(found) - 1, MOST_REFERENCES).round().astype(int)]

    def _is_scored(self, plane: int) -> bool:
        return REACH <= plane <= self.extent - REACH


@dataclass(frozen=True, slots=True)
class FaceSums:
    """One face of one block: how many runs were scored, the sum of their scores and of the squares."""

    axis: int
    plane: int
    phase: int
    kind: str
    runs: float
    total: float
    squares: float


@dataclass(frozen=True, slots=True)
class ReferenceSums:
    """The planes of one axis and phase that are no faces; sums over runs, and over the sums of whole planes."""

    planes: float = 0
    runs: float = 0
    total: float = 0
    squares: float = 0
    plane_runs_squared: float = 0
    plane_products: float = 0
    plane_totals_squared: float = 0

    def __add__(self, other: ReferenceSums) -> ReferenceSums:
        return ReferenceSums(*(a + b for a, b in zip(self.values, other.values, strict=True)))

    @property
    def values(self) -> tuple[float, ...]:
        """All of them, in order."""
        return tuple(getattr(self, name) for name in self.__slots__)

    @property
    def mean(self) -> float:
        """The score that such a plane has anyway."""
        return self.total / max(self.runs, 1.0)

    @property
    def spread(self) -> float:
        """Sum of squared deviations of runs from the mean."""
        return self.squares - self.runs * self.mean**2

    @property
    def plane_spread(self) -> float:
        """The same of whole planes: greater by how much runs of one plane go together."""
        mean = self.mean
        return self.plane_totals_squared - 2 * mean * self.plane_products + mean**2 * self.plane_runs_squared


@dataclass(frozen=True)
class SectionSums:
    """Differences between sections, summed over a block: entry i is of plane `first` + i.

    Attributes:
      first: the first plane.
      totals: sum over patches of 4x4 pixels of the size of their mean difference.
      counts: patches.
      tiles: planes at which tiles meet.
    """

    first: int = 0
    totals: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    tiles: tuple[int, ...] = ()


@dataclass(frozen=True)
class BlockSeams:
    """What a block adds to the verdict.

    Attributes:
      faces: of y and x.
      references: by axis and phase.
      sections: of z.
    """

    faces: tuple[FaceSums, ...] = ()
    references: Mapping[tuple[int, int], ReferenceSums] = field(default_factory=dict)
    sections: SectionSums = field(default_factory=SectionSums)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for a ledger's row."""
        z = self.sections
        return {
            "faces": [
                [f.axis, f.plane, f.phase, f.kind, f.runs, round(f.total, 4), round(f.squares, 4)] for f in self.faces
            ],
            "references": [
                [*key, *(round(value, 4) for value in sums.values)] for key, sums in self.references.items()
            ],
            "sections": [z.first, [round(total, 3) for total in z.totals], list(z.counts), list(z.tiles)],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> BlockSeams:
        """What `to_plain` gave."""
        first, totals, counts, tiles = plain["sections"]
        return cls(
            tuple(FaceSums(*values) for values in plain["faces"]),
            {(axis, phase): ReferenceSums(*values) for axis, phase, *values in plain["references"]},
            SectionSums(first, tuple(totals), tuple(counts), tuple(tiles)),
        )


def block_seams(
    voxels: Bytes,
    origin: Sequence[int],
    axes: Sequence[AxisPlanes],
    valid: Valid | None = None,
) -> BlockSeams:
    """Score a block's faces, and as many planes that are none.

    Args:
      voxels: uint8, (z, y, x): the block's probability, with one section before it and `REACH` voxels around it in y
        and x, as far as the output has them.
      origin: of `voxels`, in the output.
      axes: z, y, x.
      valid: bool, of the same shape; None where all of it was predicted.
    """
    at = [slice(axis.start - first, axis.stop - first) for axis, first in zip(axes, origin, strict=True)]
    faces: list[FaceSums] = []
    references: dict[tuple[int, int], ReferenceSums] = {}
    for number in (1, 2):
        along = tuple(slice(None) if i == number else at[i] for i in range(3))
        turn = (0, 1, 2) if number == 1 else (0, 2, 1)
        own, others = _axis_seams(
            number,
            axes[number],
            origin[number],
            voxels[along].transpose(turn),
            None if valid is None else valid[along].transpose(turn),
        )
        faces += own
        references |= others
    core = (slice(None), at[1], at[2])
    sections = _section_sums(voxels[core], origin[0], axes[0], None if valid is None else valid[core])
    return BlockSeams(tuple(faces), references, sections)


def _axis_seams(
    number: int, axis: AxisPlanes, origin: int, voxels: Bytes, valid: Valid | None
) -> tuple[list[FaceSums], dict[tuple[int, int], ReferenceSums]]:
    kinds = axis.faces()
    by_phase = {phase: axis.references(phase) for phase in sorted({axis.phase(plane) for plane in kinds})}
    planes = [*kinds, *(plane for found in by_phase.values() for plane in found)]
    if not planes:
        return [], {}
    sums = dict(zip(planes, plane_scores(voxels, np.array(planes) - origin, valid), strict=True))
    faces = [
        FaceSums(number, plane, axis.phase(plane), kind, *map(float, sums[plane])) for plane, kind in kinds.items()
    ]
    references = {
        (number, phase): _reference(np.array([sums[p] for p in found])) for phase, found in by_phase.items() if found
    }
    return faces, references


def _reference(sums: Floats) -> ReferenceSums:
    runs, total, squares = sums.T
    values = (len(sums), runs.sum(), total.sum(), squares.sum(), runs @ runs, runs @ total, total @ total)
    return ReferenceSums(*map(float, values))


def plane_scores(voxels: Bytes, planes: NDArray[np.int_], valid: Valid | None = None) -> Floats:
    """Runs, sum of scores and sum of their squares of each plane.

    Args:
      voxels: uint8, (z, across, along).
      planes: (planes,), numbers on the axis across; at least `REACH` from both ends.
      valid: bool, of `voxels`' shape.

    Returns:
      float64, (planes, 3).
    """
    sums = np.zeros((len(planes), 3))
    window = planes[:, np.newaxis] + np.arange(-REACH, REACH)
    sections = max(1, _SLAB_VOXELS // (window.size * voxels.shape[2]))
    for z in range(0, len(voxels), sections):
        slab = slice(z, z + sections)
        scores, counted = _run_scores(voxels[slab][:, window], None if valid is None else valid[slab][:, window])
        scores = np.where(counted, scores, 0)
        sums += np.stack([counted.sum((0, 2)), scores.sum((0, 2)), np.square(scores).sum((0, 2))], axis=1)
    return sums


def worst_spot(window: Bytes) -> tuple[int, int]:
    """Section and pixel along a plane around which it scores most.

    Args:
      window: uint8, (z, 2 `REACH`, along), with the plane in its middle.
    """
    scores, counted = _run_scores(window[:, np.newaxis], None)
    usual = np.where(counted, scores, 0)[:, 0]
    # Over five neighbouring runs: one of them may be high by chance.
    summed = np.stack([np.convolve(section, np.ones(5), "same") for section in usual])
    z, run = np.unravel_index(int(summed[:, : usual.shape[1]].argmax()), usual.shape)
    return int(z), int(run) * _RUN + _RUN // 2


def _run_scores(window: Bytes, valid: Valid | None) -> tuple[NDArray[np.float32], Valid]:
    """Score of each run, and whether it counts; `window` is (z, planes, 2 REACH, along)."""
    odds = _LOG_ODDS[_in_runs(window)]
    own = _jump_size(odds, 0)
    beside = sum(_jump_size(odds, offset) for offset in _BESIDE) / len(_BESIDE)
    counted = own + beside > _FLAT
    if valid is not None:
        counted &= _in_runs(valid, 1).all(axis=(2, 4))
    return (own - beside) / (own + beside + _FLAT), counted


def _in_runs(window: NDArray[Any], fill: int = 0) -> NDArray[Any]:
    """Cut the last axis into runs: (z, planes, 2 REACH, runs, 16), the last one filled up."""
    *lead, along = window.shape
    runs = -(-along // _RUN)
    filled = np.pad(window, [(0, 0)] * len(lead) + [(0, runs * _RUN - along)], constant_values=fill)
    return filled.reshape(*lead, runs, _RUN)


def _jump_size(odds: NDArray[np.float32], offset: int) -> NDArray[np.float32]:
    """Mean size of the jumps at a plane `offset` beside, summed by fours: (z, planes, runs)."""
    i = REACH + offset
    jump = 0.5 * (odds[:, :, i - 2] - odds[:, :, i + 1]) + 1.5 * (odds[:, :, i] - odds[:, :, i - 1])
    parts = jump.reshape(*jump.shape[:-1], _RUN // _PART, _PART).sum(axis=-1)
    size: NDArray[np.float32] = np.abs(parts).mean(axis=-1) / np.sqrt(np.float32(_PART))
    return size


def _section_sums(voxels: Bytes, origin: int, axis: AxisPlanes, valid: Valid | None) -> SectionSums:
    """Differences between sections of a block; `voxels` has the section before it, if there is one."""
    first = max(axis.start, origin + 1)
    totals, counts = [], []
    for plane in range(first, axis.stop):
        pair = slice(plane - 1 - origin, plane + 1 - origin)
        before, after = _LOG_ODDS[voxels[pair]]
        known = np.ones(before.shape, bool) if valid is None else np.logical_and(*valid[pair])
        size = np.abs(_in_patches(after - before).mean(axis=(1, 3)))
        counted = _in_patches(known).all(axis=(1, 3))
        totals.append(float(size[counted].sum()))
        counts.append(int(counted.sum()))
    return SectionSums(first, tuple(totals), tuple(counts), axis.tiles)


def _in_patches(section: NDArray[Any]) -> NDArray[Any]:
    """(y, x) as patches (n, 4, m, 4); what is left at the far edges is dropped."""
    y, x = (n // _PART * _PART for n in section.shape)
    return section[:y, :x].reshape(y // _PART, _PART, x // _PART, _PART)


def added(blocks: Iterable[BlockSeams]) -> dict[tuple[int, int], ReferenceSums]:
    """The references of all blocks together."""
    total: dict[tuple[int, int], ReferenceSums] = {}
    for block in blocks:
        for key, sums in block.references.items():
            total[key] = total.get(key, ReferenceSums()) + sums
    return total


def section_means(blocks: Iterable[BlockSeams]) -> tuple[dict[int, float], Collection[int]]:
    """Mean difference between sections by plane, over all blocks; and the planes at which tiles meet."""
    totals: dict[int, list[float]] = {}
    tiles: set[int] = set()
    for block in blocks:
        z = block.sections
        tiles.update(z.tiles)
        for i, (total, count) in enumerate(zip(z.totals, z.counts, strict=True)):
            sums = totals.setdefault(z.first + i, [0.0, 0.0])
            sums[0] += total
            sums[1] += count
    return {plane: total / count for plane, (total, count) in totals.items() if count and total > 0}, tiles
