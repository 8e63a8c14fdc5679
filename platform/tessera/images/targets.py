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

_SENTINEL = 2**64 - 1

UnknownLabel = int | Literal["largest"] | None
"""The label that means "not annotated": a number, `largest` for the greatest of the labels' dtype, None for no such."""


def target_of_labels(labels: NDArray[Any], *, invert: bool = False, unknown: UnknownLabel = None) -> NDArray[np.uint8]:
    """Membrane where labels are 0 and cell elsewhere, or with `invert` the other way round; unknown where they say so.

    >>> target_of_labels(np.uint8([0, 7, 255]), unknown=255).tolist()
    [1, 0, 255]

    Args:
      labels: integer or bool, any shape.
      invert: 0 is cell.
      unknown: see `UnknownLabel`.

    Returns:
      uint8, the same shape: `CELL`, `MEMBRANE` or `UNKNOWN`.

    Raises:
      ValueError: the labels are not whole numbers, hold negative ones or the largest uint64 undeclared, or cannot hold
        `unknown`.
    """
    if labels.dtype.kind not in ("b", "u", "i"):
        raise ValueError(
            f"labels of dtype {labels.dtype} are not whole numbers: labels are names, not amounts. "
            "Save them as uint8 with 0 for membrane and 255 for cell."
        )
    value = unknown_value(labels.dtype, unknown)
    known = np.ones(labels.shape, bool) if value is None else labels != value
    if value is None:
        _check_no_sentinel(labels)
    least = labels.min(where=known, initial=0) if labels.dtype.kind == "i" else 0
    if least < 0:
        raise ValueError(f"labels hold negative values, the least is {least}: 0 is membrane, above 0 is cell.")
    target = np.where((labels == 0) != invert, np.uint8(MEMBRANE), np.uint8(CELL))
    target[~known] = UNKNOWN
    return target


def _check_no_sentinel(labels: NDArray[Any]) -> None:
    """Refuse what CREMI and others mean by unknown, where nobody said so: it would be one huge cell."""
    count = int(np.count_nonzero(labels == _SENTINEL)) if labels.dtype == np.uint64 else 0
    if count:
        raise ValueError(
            f"labels hold the largest uint64, {_SENTINEL}, in {count:,} pixels of one section: CREMI marks unknown "
            "voxels so, and here they would be one huge cell. Set unknown_label to largest, or give that cell another "
            "id."
        )


def unknown_value(dtype: np.dtype[Any], unknown: UnknownLabel) -> int | None:
    """The number that means unknown in labels of this dtype; None where nothing does, as in bool labels.

    >>> unknown_value(np.dtype("uint64"), "largest") == 2**64 - 1
    True

    Raises:
      ValueError: no label of this dtype can have that number.
    """
    if unknown is None or dtype.kind == "b":
        return None
    limits = np.iinfo(dtype)
    value = int(limits.max) if unknown == "largest" else unknown
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
