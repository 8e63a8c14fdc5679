"""What befalls sections of the phantom between knife and camera: tears, folds and drift.

Damage is laid out in fields of 512 x 512 px of each section. A field is torn or folded by its own hash, at most once
each, and all of the damage lies inside the field: so a voxel needs to look at its own field alone.

    tear   a slit along a bent line, of bright resin with a dark rim; labels stay what they would have been
    fold   along a bent line tissue is doubled, a dark band; on both sides tissue is pulled towards the line

           source   a b c d e f | g h i j k l      s: pixels off the line
           shown    b c d e   [band]   h i j k      what lay at s + sign(s) A(p) is shown at s; A falls to 0 outwards
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.hashing import hash_at, stream, uniform, value_noise
from tessera.images.neurites import Field

FIELD_PX = 512
CENTRE_PX = 50
"""How far off its field's middle, on y and x, damage may be centred."""
LINE_BEND = ((1, 45, 45), 5.0)
"""Noise that bends the lines of tears and folds: wavelength and sigma, px."""
REACH_PX = (90.0, 165.0)
"""Half the length of a tear; the radius of what a fold moves."""
TEAR_HALF_PX = (3.0, 12.0)
TEAR_GREY, TEAR_NOISE, TEAR_RIM_PX, TEAR_RIM_GREY = 236.0, 3.0, 2.0, 70.0
FOLD_SHIFT_PX = (10.0, 24.0)
"""How far a fold moves the tissue beside it; its band is as wide as that."""
FARTHEST_PX = 25
"""No fold moves anything further."""
FOLD_LIGHT = 0.42
"""What two layers more of tissue leave of the brightness."""
DRIFT_SECTIONS = 7
"""Sections between two nodes of the drift."""
DRIFT_GAIN, DRIFT_OFFSET = 0.22, 24.0
"""One sigma of contrast, and of brightness in grey values, at drift 1."""
LEAST_GAIN, GREATEST_GAIN = 0.45, 1.35


class _Purpose(IntEnum):
    """Which stream of random numbers is for what: from 128 on they are the damage's; tears and folds have 16 each."""

    TEAR = 128
    FOLD = 144
    DRIFT_GAIN = 160
    DRIFT_OFFSET = 161
    TEAR_NOISE = 162


class _Draw(IntEnum):
    """What is drawn for a field's tear or fold, on top of its purpose."""

    CHANCE = 0
    Y = 1
    X = 2
    ANGLE = 3
    REACH = 4
    AMOUNT = 5
    BEND = 6


class _Lines(NamedTuple):
    """A box as the damage of its fields sees it; each broadcasts to float32 (z, y, x).

    Attributes:
      near: 1 - (distance to the centre / reach)^2, at least 0; 0 where the field is whole.
      off: pixels off the line, signed.
      along: pixels along the line from the centre, over the reach.
      normal: unit vector y, x, towards positive `off`.
      amount: uniform in [0, 1), the field's.
    """

    near: Field
    off: Field
    along: Field
    normal: tuple[Field, Field]
    amount: Field


class Fold(NamedTuple):
    """What a fold does to a box.

    Attributes:
      y, x: voxel that is shown at each voxel: int64, (z, y, x).
      band: bool, (z, y, x), where tissue is doubled.
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    band: NDArray[np.bool_]


def fold_of(box: Box, seed: int, chance: float) -> Fold | None:
    """Where the voxels of a box come from; None where nothing is folded.

    Args:
      box: z, y, x.
      seed: the phantom's.
      chance: that a field of a section is folded.
    """
    lines = _lines(box, seed, chance, _Purpose.FOLD)
    if lines is None:
        return None
    shift = (np.float32(FOLD_SHIFT_PX[0]) + np.float32(np.ptp(FOLD_SHIFT_PX)) * lines.amount) * lines.near * lines.near
    way = np.where(lines.off < 0, -shift, shift)
    _, y, x = np.ix_(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)))
    source_y, source_x = (
        at + np.rint(way * part).astype(np.int64) for at, part in zip((y, x), lines.normal, strict=True)
    )
    return Fold(source_y, source_x, np.abs(lines.off) < shift / 2)


def tear_of(box: Box, seed: int, chance: float) -> tuple[Field, NDArray[np.bool_]] | None:
    """The grey values of tears over a box, and where they are; None where nothing is torn.

    Args:
      box: z, y, x.
      seed: the phantom's.
      chance: that a field of a section is torn.

    Returns:
      float32 and bool, (z, y, x).
    """
    lines = _lines(box, seed, chance, _Purpose.TEAR)
    if lines is None:
        return None
    half = (np.float32(TEAR_HALF_PX[0]) + np.float32(np.ptp(TEAR_HALF_PX)) * lines.amount) * np.maximum(
        1 - lines.along * lines.along, 0
    )
    inside = half - np.abs(lines.off)
    noise = value_noise(box, (1, 3, 3), stream(seed, _Purpose.TEAR_NOISE))
    resin = np.float32(TEAR_GREY) + np.float32(TEAR_NOISE) * noise
    grey = np.where(inside < TEAR_RIM_PX, np.float32(TEAR_RIM_GREY) + 8 * noise, resin)
    return grey.astype(np.float32), (inside > 0) & (lines.near > 0)


def drift_of(box: Box, seed: int, strength: float) -> tuple[Field, Field]:
    """Factor on the distance from middle grey, and offset in grey values, of each section: float32, (z, 1, 1)."""
    sections = Box(box.start[:1], box.stop[:1])
    gain, offset = (
        value_noise(sections, (DRIFT_SECTIONS,), stream(seed, purpose))[:, None, None]
        for purpose in (_Purpose.DRIFT_GAIN, _Purpose.DRIFT_OFFSET)
    )
    factor = np.clip(1 + np.float32(DRIFT_GAIN * strength) * gain, np.float32(LEAST_GAIN), np.float32(GREATEST_GAIN))
    return factor, np.float32(DRIFT_OFFSET * strength) * offset


def _lines(box: Box, seed: int, chance: float, purpose: int) -> _Lines | None:
    """The damage of one kind in the fields that a box touches; None where all of them are whole."""
    fields = [range(a // FIELD_PX, (b - 1) // FIELD_PX + 1) for a, b in zip(box.start[1:], box.stop[1:], strict=True)]
    at = np.ix_(np.arange(box.start[0], box.stop[0]), *(np.arange(r.start, r.stop) for r in fields))

    def draw(what: _Draw) -> Field:
        return uniform(hash_at(stream(seed, purpose + what), *at))

    if not (hit := draw(_Draw.CHANCE) < chance).any():
        return None
    _, y, x = np.ix_(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)))
    mine = np.arange(box.shape[0])[:, None, None], y // FIELD_PX - fields[0].start, x // FIELD_PX - fields[1].start
    dy, dx = (
        (n % FIELD_PX - FIELD_PX // 2).astype(np.float32) - np.float32(CENTRE_PX) * (2 * draw(what)[mine] - 1)
        for n, what in ((y, _Draw.Y), (x, _Draw.X))
    )
    slope = 2 * draw(_Draw.ANGLE)[mine] - 1
    square = 1 + slope * slope
    cosine, sine = (2 - square) / square, 2 * slope / square
    reach = np.float32(REACH_PX[0]) + np.float32(np.ptp(REACH_PX)) * draw(_Draw.REACH)[mine]
    bend = np.float32(LINE_BEND[1]) * value_noise(box, LINE_BEND[0], stream(seed, purpose + _Draw.BEND))
    along, off = cosine * dx + sine * dy, cosine * dy - sine * dx + bend
    near = np.maximum(1 - (along * along + off * off) / (reach * reach), 0) * hit[mine]
    return _Lines(near, off, along / reach, (cosine, -sine), draw(_Draw.AMOUNT)[mine])
