"""The phantom's neurites: which neuron owns a voxel, and how far off the face to the next one is.

Seeds on a jittered lattice own the space nearest to them (a weighted Voronoi diagram), over coordinates that smooth
noise has bent. Neighbouring seeds, a run of layers along z above all, share one neuron: profiles differ in size and
shape, wander from section to section, and end.

What keeps a block bit-equal to the same block of the whole: seeds, noise and distances depend on absolute coordinates
alone; ties go by the order of the lattice; a seed is left out of a block only where it cannot matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.hashing import hash_at, stream, uniform, value_noise

Field = NDArray[np.float32]

# ---- Frozen: see phantom.py. ----

VOXEL_SIZE_NM = (50.0, 4.0, 4.0)
"""Size of a voxel on z, y, x, in nm: that of the ISBI 2012 stack."""

SEED_PITCH_NM = (450, 208, 208)
"""Spacing of the seeds' lattice, nm: nine sections, and 52 pixels."""

SEED_JITTER = 0.85
"""The part of its lattice cell, on each axis, that a seed may lie in: at 1, seeds of neighbouring cells could meet."""

SEED_SIZES = (0.65, 1.7)
"""Seeds differ in size r, and own what is nearest by |p - s| / r: small ones get round profiles that bulge outwards."""

STRETCH = (0.6, 1.0, 1.0)
"""What a distance counts for on each axis: less on z, which draws neurites out along it."""

MERGE_GROUP = 3
MERGE_CHANCES = (0.40, 0.36)
"""Inside groups of 3x3 lattice columns, the chance that a column joins the one before it on y, and on x."""

RUN_LAYERS = 7
"""Layers of the lattice, on z, after which a neuron ends: 63 sections."""

REACH_NM = 900.0
"""How far a seed of size 1 is felt on y and x; what is further off is out of sight."""

WARPS = (((20, 150, 150), 60.0), ((9, 48, 48), 26.0), ((3, 21, 21), 6.0))
"""Noise that bends space: (voxels between its nodes on z, y, x; one sigma there in nm)."""

MEMBRANE_HALF_NM = 13.5
"""Half the width of a membrane between two neurons."""

MEMBRANE_EDGE_NM = 5.0
"""How softly its darkness ends."""

# ---- End of what is frozen. ----

FARTHEST = 2**26
"""The last voxel on each axis, for ids of three packed coordinates to stay unique: 0.27 m of tissue on y and x."""

_ID_BITS = 21
_ID_BIAS = 64  # lattice cells before voxel 0 have negative coordinates; ids have not


class _Purpose(IntEnum):
    """Which stream of random numbers is for what: 0 to 31 are the neurites'."""

    JITTER = 0
    SIZE = 3
    JOIN = 4
    RUN = 5
    WARP = 16


@dataclass(frozen=True, slots=True)
class _Seeds:
    """Seeds of the diagram: position int64 (n, 3) nm, pull float32 (n,) = 1 / size^2, neuron uint64 (n,)."""

    position: NDArray[np.int64]
    pull: Field
    neuron: NDArray[np.uint64]

    def __getitem__(self, keep: NDArray[np.bool_]) -> _Seeds:
        return _Seeds(self.position[keep], self.pull[keep], self.neuron[keep])


@dataclass(frozen=True, slots=True)
class Faces:
    """Each voxel's neuron, and its face: where the nearest other neuron begins.

    Attributes:
      neuron: uint64, (z, y, x), never 0.
      distance_nm: float32, (z, y, x), to the face; right near it, too large or small far from it.
      obliqueness: float32, (z, y, x), |n_z| of the face's normal: 0 where it is upright, 1 where flat.
    """

    neuron: NDArray[np.uint64]
    distance_nm: Field
    obliqueness: Field


class _View(NamedTuple):
    """A box as its seeds see it.

    Attributes:
      seeds: the n seeds that matter in it.
      offsets: position of its voxels relative to each seed, before bending: per axis float32, (n, extent), nm.
      bent: how far each voxel is moved: float32, (3, z, y, x), nm.
    """

    seeds: _Seeds
    offsets: list[Field]
    bent: Field


class _Nearest(NamedTuple):
    """Per voxel: the index of a seed, and the distance to it in units of the seed's size; int32, float32, (z, y, x)."""

    seed: NDArray[np.int32]
    distance: Field


def find_faces(box: Box, seed: int) -> Faces:
    """Each voxel's neuron, and the face at which it would be as near to a seed of another.

    With f the difference of the two distances, the face is f = 0, its normal grad f, and f / |grad f| the way to it.
    Working memory is about 100 bytes a voxel: make small boxes.
    """
    wide = _bend(box.grown((1, 1, 1)), seed)
    bent = wide[:, 1:-1, 1:-1, 1:-1]
    seeds = _near(_seeds_around(box, seed), box, bent)
    view = _View(seeds, _offsets(seeds, box), bent)
    near, far = _podium(view)
    slope = _straighten([b - a for a, b in zip(_slopes(near, view), _slopes(far, view), strict=True)], wide)
    steepness = np.sqrt(slope[0] * slope[0] + slope[1] * slope[1] + slope[2] * slope[2])
    steepness = np.maximum(steepness, np.float32(1e-3))
    seen = far.distance < REACH_NM  # else `far` names no seed, and what it names differs between boxes
    distance = np.where(seen, (far.distance - near.distance) / steepness, np.float32(REACH_NM))
    return Faces(seeds.neuron[near.seed], distance, np.where(seen, np.abs(slope[0]) / steepness, np.float32(0)))


def _bend(box: Box, seed: int) -> Field:
    """How far each voxel is moved before its nearest seed is sought: float32, (3, z, y, x), nm."""
    moved = np.zeros((3, *box.shape), np.float32)
    for octave, (wavelength, sigma_nm) in enumerate(WARPS):
        for axis in range(3):
            noise = value_noise(box, wavelength, stream(seed, _Purpose.WARP + 3 * octave + axis))
            moved[axis] += np.float32(sigma_nm) * noise
    return moved


def _seeds_around(box: Box, seed: int) -> _Seeds:
    """Every seed that a voxel of `box` can feel, in the order of the lattice, which decides ties."""
    pitch, voxel = np.array(SEED_PITCH_NM), np.array(VOXEL_SIZE_NM, int)
    # Noise stays within 3.47 sigma; a seed's size and the stretch of z let it be felt from further off than REACH_NM.
    reach = REACH_NM * SEED_SIZES[1] / np.array(STRETCH)
    margin = (reach + 3.5 * sum(sigma for _, sigma in WARPS)).astype(np.int64)
    low, high = (voxel * box.start - margin) // pitch, (voxel * box.stop + margin) // pitch + 1
    cell = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1).reshape(-1, 3)
    z, y, x = cell.T
    place = np.stack([uniform(hash_at(stream(seed, _Purpose.JITTER + axis), z, y, x)) for axis in range(3)], -1)
    inside = (0.5 + SEED_JITTER * (place.astype(np.float64) - 0.5)) * pitch
    spread = uniform(hash_at(stream(seed, _Purpose.SIZE), z, y, x)) * np.float32(SEED_SIZES[1] - SEED_SIZES[0])
    size = spread + np.float32(SEED_SIZES[0])
    return _Seeds(cell * pitch + inside.astype(np.int64), np.reciprocal(size * size), _neurons(z, y, x, seed))


def _neurons(z: NDArray[np.int64], y: NDArray[np.int64], x: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """The id of the neuron that owns each lattice cell: its root column and the run of layers, packed one to one.

    A column points at itself or, by its hash, at the one before it on y or x within its group. Pointers only go back,
    so a root is at most 2 (MERGE_GROUP - 1) steps away, and is found without looking beyond the group.
    """
    for _ in range(2 * (MERGE_GROUP - 1)):
        chance = uniform(hash_at(stream(seed, _Purpose.JOIN), y, x))
        back_y = (y % MERGE_GROUP > 0) & (chance < MERGE_CHANCES[0])
        back_x = (x % MERGE_GROUP > 0) & (chance >= 1 - MERGE_CHANCES[1])
        y, x = y - back_y, x - back_x
    shift = hash_at(stream(seed, _Purpose.RUN), y, x) % np.uint64(RUN_LAYERS)
    run = (z + shift.astype(np.int64)) // RUN_LAYERS
    packed = (((run + _ID_BIAS) << _ID_BITS) + y + _ID_BIAS << _ID_BITS) + x + _ID_BIAS
    return packed.astype(np.uint64)


def _near(seeds: _Seeds, box: Box, bent: Field) -> _Seeds:
    """The seeds that can be nearest, or nearest of another neuron, somewhere in `box`: only they are worth a distance.

    Two seeds of different neurons are nowhere farther than the farther one's most: what is always beyond that is out.
    """
    voxel = np.array(VOXEL_SIZE_NM)
    low = voxel * box.start + bent.min((1, 2, 3))
    high = voxel * (np.array(box.stop) - 1) + bent.max((1, 2, 3))
    below, above = low - seeds.position, seeds.position - high
    least = ((np.maximum(0, np.maximum(below, above)) * STRETCH) ** 2).sum(1) * seeds.pull
    most = ((np.maximum(-below, -above) * STRETCH) ** 2).sum(1) * seeds.pull
    other = most[seeds.neuron != seeds.neuron[most.argmin()]].min()
    return seeds[least <= min(other, REACH_NM**2) * 1.001]  # 0.1% is far more than float32 can lose


def _offsets(seeds: _Seeds, box: Box) -> list[Field]:
    """Position of the box's voxels relative to each seed, before bending: per axis float32, (seeds, extent), nm."""
    # The difference is taken in whole nm, before float32: at voxel 10^8 a float32 position is off by 32 nm.
    at = [np.arange(a, b) * int(nm) for a, b, nm in zip(box.start, box.stop, VOXEL_SIZE_NM, strict=True)]
    return [(at[axis] - seeds.position[:, axis, None]).astype(np.float32) for axis in range(3)]


def _podium(view: _View) -> tuple[_Nearest, _Nearest]:
    """Each voxel's nearest seed, and the nearest of another neuron; seed 0 at REACH_NM where there is none."""
    seeds, shape = view.seeds, view.bent.shape[1:]
    first, second = (_Nearest(np.zeros(shape, np.int32), np.full(shape, REACH_NM, np.float32)) for _ in range(2))
    for neuron in np.unique(seeds.neuron):
        index, distance = _nearest_of(np.flatnonzero(seeds.neuron == neuron), view)
        for holder, best in (first, second):  # what a newcomer beats to the first place tries the second
            wins = distance < best
            beaten = np.where(wins, holder, index), np.maximum(distance, best)
            np.copyto(holder, index, where=wins)
            np.minimum(distance, best, out=best)
            index, distance = beaten
    return first, second


def _nearest_of(members: NDArray[np.intp], view: _View) -> _Nearest:
    """Which of some seeds, all of one neuron, is nearest."""
    index = np.full(view.bent.shape[1:], members[0], np.int32)
    nearest = _squared_distance(members[0], view)
    for member in members[1:]:
        squared = _squared_distance(member, view)
        np.copyto(index, member, where=squared < nearest)
        np.minimum(nearest, squared, out=nearest)
    return _Nearest(index, np.sqrt(nearest))


def _squared_distance(member: np.intp, view: _View) -> Field:
    """Square of the distance to one seed, in units of its size: float32, (z, y, x), nm^2."""
    total = np.zeros(view.bent.shape[1:], np.float32)
    for axis, offset in enumerate(view.offsets):
        away = _along(axis, offset[member]) + view.bent[axis]
        away *= np.float32(STRETCH[axis])
        away *= away
        total += away
    total *= view.seeds.pull[member]
    return total


def _slopes(nearest: _Nearest, view: _View) -> list[Field]:
    """The gradient of the distance to each voxel's chosen seed, per axis: float32, (z, y, x), without a unit."""
    steepness = view.seeds.pull[nearest.seed] / np.maximum(nearest.distance, np.float32(1.0))
    slopes = []
    for axis, offset in enumerate(view.offsets):
        place = _along(axis, np.arange(offset.shape[1]))
        away = offset[nearest.seed, place] + view.bent[axis]
        slopes.append(away * steepness * np.float32(STRETCH[axis] ** 2))
    return slopes


def _straighten(slopes: list[Field], wide: Field) -> list[Field]:
    """Gradients over bent space as gradients over real space, so that a membrane keeps its width where space is bent.

    Args:
      slopes: float32, (z, y, x), one per axis.
      wide: how far each voxel is moved, with one voxel more on every side: float32, (3, z + 2, y + 2, x + 2), nm.
    """
    straight = [slope.copy() for slope in slopes]
    for axis, size_nm in enumerate(VOXEL_SIZE_NM):
        ahead = wide[(slice(None), *(slice(2, None) if a == axis else slice(1, -1) for a in range(3)))]
        behind = wide[(slice(None), *(slice(-2) if a == axis else slice(1, -1) for a in range(3)))]
        shear = (ahead - behind) / np.float32(2 * size_nm)
        for moved, slope in enumerate(slopes):
            straight[axis] += shear[moved] * slope
    return straight


def _along(axis: int, values: NDArray[Any]) -> NDArray[Any]:
    """A row of values laid along one of three axes."""
    return values.reshape([-1 if a == axis else 1 for a in range(3)])
