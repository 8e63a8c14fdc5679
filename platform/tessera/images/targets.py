"""What a network is asked to say of each pixel: membrane, cell, or nothing where nobody annotated.

Labels come as masks or ids, with a value of the lab's own for what was left open. Everything downstream reads one
form, in which unknown is a value and not a second array: so it goes through the same warps as the truth around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CELL, MEMBRANE, UNKNOWN = 0, 1, 255
"""The values of a target; an unknown pixel carries no loss and is not scored."""

_LARGEST = 2**64 - 1

UnknownLabel = int | Literal["largest"] | None
"""The label that means "not annotated": a number, `largest` for the greatest of the labels' dtype, None for no such.

The largest uint64 means it in any case: CREMI and others mark unknown voxels so, and no object has that id.
"""

LabelsAre = Literal["mask", "membranes", "instances"]
"""What labels are: `mask` of cells, not 0 in a cell; `membranes`, not 0 on a membrane; `instances`, an id per cell."""


@dataclass(frozen=True, slots=True)
class LabelRule:
    """How labels become membrane and cell.

    Attributes:
      are: what they are.
      border_px: of instances, how wide a membrane is drawn where two cells touch: half of it on either side, in pixels.
        Cells that a membrane of id 0 keeps apart do not touch.
      unknown: the label that means "not annotated".
    """

    are: LabelsAre = "mask"
    border_px: int = 2
    unknown: UnknownLabel = None

    def __post_init__(self) -> None:
        if not 0 <= self.border_px <= 64:
            raise ValueError(
                f"border_px={self.border_px}: the membrane between two cells that touch is 0 to 64 pixels wide. Try 2, "
                "a pixel of each cell; 0 draws none."
            )

    def target(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        """What each pixel is: `CELL`, `MEMBRANE` or `UNKNOWN`.

        >>> LabelRule("instances").target(np.array([[5, 5, 9, 9, 0, 2**64 - 1]], np.uint64)).tolist()
        [[0, 1, 1, 0, 1, 255]]

        Args:
          labels: integer or bool, (..., y, x).

        Returns:
          uint8, the same shape.

        Raises:
          ValueError: the labels are not whole numbers, hold negative ones, or cannot hold `unknown`.
        """
        known = _known(labels, self.unknown)
        membrane = (labels == 0) != (self.are == "membranes")
        if self.are == "instances":
            membrane |= borders_between(labels, known, self.border_px)
        target = np.where(membrane, np.uint8(MEMBRANE), np.uint8(CELL))
        target[~known] = UNKNOWN
        return target


def _known(labels: NDArray[Any], unknown: UnknownLabel) -> NDArray[np.bool_]:
    if labels.dtype.kind not in ("b", "u", "i"):
        raise ValueError(
            f"labels of dtype {labels.dtype} are not whole numbers: labels are names, not amounts. "
            "Save them as uint8 with 0 for membrane and 255 for cell."
        )
    value = unknown_value(labels.dtype, unknown)
    known = np.ones(labels.shape, bool) if value is None else labels != value
    if labels.dtype == np.uint64 and value != _LARGEST:
        known &= labels != _LARGEST
    least = labels.min(where=known, initial=0) if labels.dtype.kind == "i" else 0
    if least < 0:
        raise ValueError(f"labels hold negative values, the least is {least}: 0 is membrane, above 0 is cell.")
    return known


def borders_between(ids: NDArray[Any], known: NDArray[np.bool_], width_px: int) -> NDArray[np.bool_]:
    """Where the border between two ids runs, section by section: pixels within half its width of another id.

    Distances are those between pixels' centres, so that a width of 2 takes the pixel on either side. 0 is no id: a
    membrane that is drawn already grows no wider, and neither does what borders on the unknown.

    Args:
      ids: integer, (..., y, x), 0 outside objects.
      known: bool, of the same shape.
      width_px: of the border; 0 draws none.

    Returns:
      Bool, of the same shape.
    """
    border, objects = np.zeros(ids.shape, bool), known & (ids != 0)
    for dy, dx in _half_disc(width_px / 2):
        here, there = _shifted(dy, dx), _shifted(-dy, -dx)
        apart = (ids[here] != ids[there]) & objects[here] & objects[there]
        border[here] |= apart
        border[there] |= apart
    return border


def _half_disc(radius: float) -> list[tuple[int, int]]:
    """One of each two opposite steps (dy, dx) that are no longer than `radius`.

    >>> _half_disc(1.0), len(_half_disc(2.0))
    ([(0, 1), (1, 0)], 6)
    """
    reach = int(radius)
    steps = ((dy, dx) for dy in range(reach + 1) for dx in range(-reach, reach + 1))
    return [(dy, dx) for dy, dx in steps if (dy, dx) > (0, 0) and dy * dy + dx * dx <= radius * radius]


def _shifted(dy: int, dx: int) -> tuple[Any, ...]:
    """The part of a section whose pixels have a neighbour (dy, dx) away."""
    return (..., *(slice(max(0, -step), -step if step > 0 else None) for step in (dy, dx)))


def unknown_value(dtype: np.dtype[Any], unknown: UnknownLabel) -> int | None:
    """The number that means unknown in labels of this dtype; None where nothing does, as in bool labels.

    >>> unknown_value(np.dtype("uint64"), None) == 2**64 - 1
    True

    Raises:
      ValueError: no label of this dtype can have that number.
    """
    if dtype.kind == "b" or (unknown is None and dtype != np.uint64):
        return None
    limits = np.iinfo(dtype)
    value = int(limits.max) if unknown is None or unknown == "largest" else unknown
    if not limits.min <= value <= limits.max:
        raise ValueError(
            f"unknown_label={value} does not fit labels of {dtype}, {limits.min} to {limits.max}: no pixel could be "
            f"unknown. Give the value that these labels hold, such as {limits.max}."
        )
    return value


@dataclass(frozen=True)
class KnownPixels:
    """The known pixels of some sections, to draw from with equal chances.

    Attributes:
      ends: int64, (sections,): how many there are up to and with each section.
      places: of each section, flat indices of its known pixels, ascending.
      widths: of each section, its extent on x.
    """

    ends: NDArray[np.int64]
    places: tuple[NDArray[np.int64], ...]
    widths: tuple[int, ...]

    def draw(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """A section and one of its known pixels, (y, x)."""
        rank = int(rng.integers(self.ends[-1]))
        section = int(np.searchsorted(self.ends, rank, side="right"))
        first = int(self.ends[section]) - len(self.places[section])
        y, x = divmod(int(self.places[section][rank - first]), self.widths[section])
        return section, (y, x)


def known_pixels(targets: Sequence[NDArray[np.uint8]]) -> KnownPixels | None:
    """The known pixels of sections, (y, x) each; None where every pixel is known and there is nothing to look for."""
    if not any((target == UNKNOWN).any() for target in targets):
        return None
    places = tuple(np.flatnonzero(target != UNKNOWN) for target in targets)
    counts = np.array([len(place) for place in places], np.int64)
    return KnownPixels(np.cumsum(counts), places, tuple(target.shape[1] for target in targets))
