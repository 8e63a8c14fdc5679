"""Mitochondria and vesicles for the phantom: what is dark, round and no membrane between cells.

They are why a network that finds dark lines is not yet one that finds cells. Each is a function of seed and voxel
position, like all of the phantom, and lies inside one neurite; labels do not know of them.

    mitochondria   an ellipsoid around a point deep in a neurite, cut back to a gap before the neurite's membrane:
                   dark wall, grey matrix, striped by cristae across its long axis
    vesicles       rings on a jittered lattice in each section, where a smooth field says cluster and the neurite's
                   hash says that it holds any; a section is thicker than they are, so each is in one alone
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.hashing import hash_at, stream, uniform, value_noise
from tessera.images.neurites import VOXEL_SIZE_NM, Faces, Field, find_faces

# Mitochondria.

MITO_PITCH_NM = (700, 480, 480)
"""Spacing of the lattice in whose cells one mitochondrion each may begin."""
MITO_CHANCE = 0.7
MITO_SEARCH_PX = 22
"""Its centre is the deepest point of a neurite this far around where it begins, on y and x."""
MITO_FREE_NM = 80.0
"""The least way from a mitochondrion's centre to the neurite's face."""
MITO_WIDTHS_NM = (85.0, 190.0)
"""Half the short axis, in plane: within these, what the neurite has room for."""
MITO_LENGTHS = (1.3, 2.6)
MITO_DEPTHS = (2.0, 3.6)
"""The long axis, and the one along z, in units of the short one."""
MITO_GAP_NM = 30.0
"""From the neurite's face to a mitochondrion's wall, at least: more than half the widest membrane, 25 nm."""
MITO_ROUNDING_NM = 40.0
"""How roundly a mitochondrion's end turns into the side that follows its neurite."""
MITO_SUPPORT = 1.2
"""Nothing of a mitochondrion lies outside its ellipsoid enlarged by this."""
WOBBLE = ((3, 22, 22), 9.0)
WALL_NM, WALL_DEPTH = 8.0, 42.0
MATRIX, MATRIX_TEXTURE = 88.0, 0.6
CRISTA_PITCH_NM, CRISTA_DEPTH = 44.0, 66.0
CRISTA_BEND = ((2, 14, 14), 17.0)

# Vesicles.

VESICLE_PITCH_PX = 13
VESICLE_RADII_NM = (13.0, 19.0)
VESICLE_RING_NM, VESICLE_DEPTH = 7.5, 62.0
VESICLE_CLUSTER = ((4, 9, 9), 0.35)
"""Wavelength of the field of clusters, in lattice cells, and where in it a cluster begins, in sigmas."""
VESICLE_CHANCE, VESICLE_NEURONS = 0.7, 0.5
"""How full a cluster is, and the part of all neurons that hold vesicles."""
VESICLE_GAP_NM = 26.0
"""From the neurite's face: nothing of a vesicle is nearer. More than half the widest membrane, again."""

_VOXEL = np.array(VOXEL_SIZE_NM, np.int64)


class _Purpose(IntEnum):
    """Which stream of random numbers is for what: 96 to 127 are the organelles'."""

    MITO = 96
    MITO_WOBBLE = 104
    MITO_BEND = 105
    VESICLE_CLUSTER = 112
    VESICLE_CHANCE = 113
    VESICLE_Y = 114
    VESICLE_X = 115
    VESICLE_RADIUS = 116
    VESICLE_NEURON = 117


# What makes a mitochondrion's surface uneven, and its cristae bend.
_NOISES = tuple(
    (wavelength, np.float32(sigma), purpose)
    for (wavelength, sigma), purpose in ((WOBBLE, _Purpose.MITO_WOBBLE), (CRISTA_BEND, _Purpose.MITO_BEND))
)


@dataclass(frozen=True, slots=True)
class _Mitochondrion:
    """One of them: centre (z, y, x) in nm, half axes along z, its long and its short one in nm, direction in plane."""

    neuron: int
    centre: tuple[int, int, int]
    half_axes: tuple[float, float, float]
    cosine: float
    sine: float


class _Body(NamedTuple):
    """A mitochondrion over a box: way in from its surface, and place along its long axis; float32, (z, y, x), nm."""

    depth: Field
    along: Field


def with_mitochondria(grey: Field, cytoplasm: float, box: Box, seed: int, faces: Faces) -> tuple[Field, Field]:
    """Grey values with mitochondria painted over, and how much of each voxel they cover.

    Args:
      grey: float32, (z, y, x), cytoplasm alone.
      cytoplasm: its mean, about which a mitochondrion keeps some of the texture.
      box: where.
      seed: the phantom's.
      faces: of the box.

    Returns:
      The grey values and the cover in [0, 1], float32, (z, y, x).
    """
    cover = np.zeros(box.shape, np.float32)
    matrix = np.float32(MATRIX) + np.float32(MATRIX_TEXTURE) * (grey - np.float32(cytoplasm))
    here = [one for one in _mitochondria_near(box, seed) if (faces.neuron == np.uint64(one.neuron)).any()]
    noise = [
        sigma * value_noise(box, wavelength, stream(seed, purpose)) for wavelength, sigma, purpose in _NOISES if here
    ]
    for one in here:
        body = _body(one, box, faces, *noise)
        inside = np.clip(body.depth / np.float32(4) + np.float32(0.5), 0, 1)
        wall = np.maximum(1 - np.abs(body.depth - np.float32(WALL_NM)) / np.float32(WALL_NM), 0)
        grey = grey + inside * (matrix + _cristae(body) - grey) - np.float32(WALL_DEPTH) * wall
        cover = np.maximum(cover, inside)
    return grey, cover


def _mitochondria_near(box: Box, seed: int) -> list[_Mitochondrion]:
    """Those that may reach into the box, in the order of their lattice."""
    reach = np.array([a * MITO_WIDTHS_NM[1] * MITO_SUPPORT for a in (MITO_DEPTHS[1], MITO_LENGTHS[1], MITO_LENGTHS[1])])
    low, high = _VOXEL * box.start, _VOXEL * (np.array(box.stop) - 1)
    pitch = np.array(MITO_PITCH_NM)
    first, last = ((low - reach) // pitch).astype(int), ((high + reach) // pitch).astype(int)
    cells = product(*(range(a, b + 1) for a, b in zip(first, last, strict=True)))
    found = (_mitochondrion(seed, *cell) for cell in cells)
    return [one for one in found if one is not None and _reaches(one, low, high)]


def _reaches(one: _Mitochondrion, low: NDArray[np.int64], high: NDArray[np.int64]) -> bool:
    z, a, _ = one.half_axes
    reach = MITO_SUPPORT * np.array([z, a, a])
    return bool((np.array(one.centre) + reach >= low).all() and (np.array(one.centre) - reach <= high).all())


@lru_cache(maxsize=4096)  # a pure function; neighbouring pieces ask for the same ones again
def _mitochondrion(seed: int, z: int, y: int, x: int) -> _Mitochondrion | None:
    """The mitochondrion of one lattice cell; None where there is none, or no room for one."""
    draw = _draws(seed, z, y, x)
    if draw[_MITO_CHANCE] >= MITO_CHANCE:
        return None
    start = [int((n + p) * pitch) for n, p, pitch in zip((z, y, x), draw, MITO_PITCH_NM, strict=False)]
    centre, room, neuron = _deepest(tuple(n // int(size) for n, size in zip(start, _VOXEL, strict=True)), seed)
    if room < MITO_FREE_NM:
        return None
    least, most = MITO_WIDTHS_NM
    short = min(max(0.85 * room, least), least + draw[_MITO_WIDTH] * (most - least))
    long = short * (MITO_LENGTHS[0] + draw[_MITO_LENGTH] * (MITO_LENGTHS[1] - MITO_LENGTHS[0]))
    deep = short * (MITO_DEPTHS[0] + draw[_MITO_DEPTH] * (MITO_DEPTHS[1] - MITO_DEPTHS[0]))
    # A point of the half circle without sine or cosine: only what rounds alike everywhere.
    slope = 2 * draw[_MITO_SLOPE] - 1
    square = 1 + slope * slope
    return _Mitochondrion(neuron, centre, (deep, long, short), (2 - square) / square, 2 * slope / square)


_MITO_CHANCE, _MITO_WIDTH, _MITO_LENGTH, _MITO_DEPTH, _MITO_SLOPE = range(3, 8)


def _draws(seed: int, z: int, y: int, x: int) -> list[float]:
    """What is random about a lattice cell's mitochondrion, in [0, 1): place z, y, x, then the above."""
    at = [np.array([n]) for n in (z, y, x)]
    return [float(uniform(hash_at(stream(seed, _Purpose.MITO + k), *at))[0]) for k in range(8)]


def _deepest(voxel: tuple[int, ...], seed: int) -> tuple[tuple[int, int, int], float, int]:
    """The point farthest from any face around a voxel, in its section: z, y, x in nm, way to the face, neuron."""
    around = Box(voxel, tuple(n + 1 for n in voxel)).grown((0, MITO_SEARCH_PX, MITO_SEARCH_PX))
    faces = find_faces(around, seed)
    z, y, x = np.unravel_index(int(faces.distance_nm.argmax()), around.shape)
    centre = [int(n + a) * int(size) for n, a, size in zip((z, y, x), around.start, _VOXEL, strict=True)]
    return (centre[0], centre[1], centre[2]), float(faces.distance_nm[z, y, x]), int(faces.neuron[z, y, x])


def _body(one: _Mitochondrion, box: Box, faces: Faces, wobble: Field, bend: Field) -> _Body:
    """Where in a mitochondrion each voxel lies; far outside, or in another neuron, the depth is very negative."""
    at = zip(box.start, box.stop, one.centre, _VOXEL, strict=True)
    w, dy, dx = np.ix_(*((np.arange(a, b) * size - c).astype(np.float32) for a, b, c, size in at))
    along = np.float32(one.cosine) * dx + np.float32(one.sine) * dy
    across = np.float32(one.cosine) * dy - np.float32(one.sine) * dx
    deep, long, short = (np.float32(half) for half in one.half_axes)
    p, q, r = w / deep, along / long, across / short
    radius = np.sqrt(p * p + q * q + r * r)
    p, q, r = p / deep, q / long, r / short
    # To first order the way to the surface of an implicit shape is f / |grad f|, as for the neurites' faces.
    slope = np.sqrt(p * p + q * q + r * r) / np.maximum(radius, np.float32(1e-3))
    depth = (1 - radius) / np.maximum(slope, np.float32(1e-4)) + wobble
    depth = _rounded_minimum(depth, faces.distance_nm - np.float32(MITO_GAP_NM))
    belongs = (faces.neuron == np.uint64(one.neuron)) & (radius < MITO_SUPPORT)
    return _Body(np.where(belongs, depth, np.float32(-1e6)), along + bend)


def _rounded_minimum(a: Field, b: Field) -> Field:
    """The lesser of two depths, less up to MITO_ROUNDING_NM / 4 where they are alike: their common edge is rounded.

    Source: Quilez, "Smooth minimum" (the quadratic one), iquilezles.org.
    """
    share = np.clip(np.float32(0.5) + (b - a) / np.float32(2 * MITO_ROUNDING_NM), 0, 1)
    lesser: Field = b + share * (a - b) - np.float32(MITO_ROUNDING_NM) * share * (1 - share)
    return lesser


def _cristae(body: _Body) -> Field:
    """The stripes of a mitochondrion's inside, about 0: float32, (z, y, x)."""
    phase = body.along / np.float32(CRISTA_PITCH_NM)
    phase = phase - np.floor(phase)
    wave: Field = np.abs(2 * phase - 1) - np.float32(0.5)
    return np.float32(CRISTA_DEPTH) * wave


def vesicle_darkness(box: Box, seed: int, faces: Faces) -> Field:
    """How much darker vesicles make each voxel: float32, (z, y, x), grey values."""
    _, y, x = np.ix_(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)))
    cells = Box(
        (box.start[0], *(n // VESICLE_PITCH_PX - 1 for n in box.start[1:])),
        (box.stop[0], *((n - 1) // VESICLE_PITCH_PX + 2 for n in box.stop[1:])),
    )
    radius, centre_y, centre_x = _vesicles(cells, seed)
    row, column = y // VESICLE_PITCH_PX - cells.start[1], x // VESICLE_PITCH_PX - cells.start[2]
    z = np.arange(box.shape[0])[:, None, None]
    ring = np.zeros(box.shape, np.float32)
    for down, right in product((-1, 0, 1), repeat=2):  # a ring may reach into the next lattice cell, no further
        own = z, row + down, column + right
        dy, dx = (y - centre_y[own]) * np.float32(_VOXEL[1]), (x - centre_x[own]) * np.float32(_VOXEL[2])
        off = np.abs(np.sqrt(dy * dy + dx * dx) - radius[own])
        np.maximum(ring, np.where(radius[own] > 0, 1 - off / np.float32(VESICLE_RING_NM), 0), out=ring)
    holds = uniform(hash_at(stream(seed, _Purpose.VESICLE_NEURON), faces.neuron.astype(np.int64))) < VESICLE_NEURONS
    free = np.clip((faces.distance_nm - np.float32(VESICLE_GAP_NM)) / np.float32(8), 0, 1)
    dark: Field = np.float32(VESICLE_DEPTH) * ring * free * holds
    return dark


def _vesicles(cells: Box, seed: int) -> tuple[Field, NDArray[Any], NDArray[Any]]:
    """Radius, nm, and centre y, x, voxels, of the vesicle in each lattice cell; radius 0 where there is none."""
    at = np.ix_(*(np.arange(a, b) for a, b in zip(cells.start, cells.stop, strict=True)))

    def draw(purpose: int) -> Field:
        return uniform(hash_at(stream(seed, purpose), *at))

    cluster = value_noise(cells, VESICLE_CLUSTER[0], stream(seed, _Purpose.VESICLE_CLUSTER)) > VESICLE_CLUSTER[1]
    present = cluster & (draw(_Purpose.VESICLE_CHANCE) < VESICLE_CHANCE)
    radius = np.float32(VESICLE_RADII_NM[0]) + np.float32(np.ptp(VESICLE_RADII_NM)) * draw(_Purpose.VESICLE_RADIUS)
    places = [(draw(p) * VESICLE_PITCH_PX).astype(np.int64) for p in (_Purpose.VESICLE_Y, _Purpose.VESICLE_X)]
    y, x = (at[1 + k] * VESICLE_PITCH_PX + places[k] for k in range(2))
    return np.where(present, radius, np.float32(0)), y, x
