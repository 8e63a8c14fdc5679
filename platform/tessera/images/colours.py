"""Greys and colours for pictures; the same id has the same colour in every block, picture and run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.images.targets import MEMBRANE, UNKNOWN

# Channels run over 64..255, so that no cell is as dark as membrane: 192^3 colours.
_DARKEST = 64
_LEVELS = 256 - _DARKEST
_COLOURS = _LEVELS**3

# Coprime to 192^3 = 2^18 3^3, so that multiplying permutes the colours. Chosen among 20,000 random ones for the largest
# least difference between the colours of ids at most 500 apart.
_MULTIPLIER = 2_064_319

_UNKNOWN_COLOUR = (64, 96, 176)


def label_colours(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """A stable colour per label: 0 is black, and ids that differ by less than 7,077,888 never share a colour.

    Args:
      labels: unsigned or non-negative integer, any shape.

    Returns:
      uint8, (..., 3), red, green, blue.

    Raises:
      ValueError: labels are not integers, or one is negative.
    """
    if labels.dtype.kind not in "iub" or (labels.dtype.kind == "i" and labels.size and labels.min() < 0):
        raise ValueError(
            f"labels are {labels.dtype}, some perhaps negative: ids are integers of 0 or more, as in uint64."
        )
    hashed = labels.astype(np.uint64) % np.uint64(_COLOURS) * np.uint64(_MULTIPLIER) % np.uint64(_COLOURS)
    divisors = np.array([_LEVELS**2, _LEVELS, 1], np.uint64)
    colours = (hashed[..., None] // divisors % np.uint64(_LEVELS) + np.uint64(_DARKEST)).astype(np.uint8)
    return np.where((labels > 0)[..., None], colours, np.uint8(0))


def target_colours(target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Truth for the eye: membrane white, cell black, and what nobody annotated blue.

    Args:
      target: uint8, any shape: `MEMBRANE`, `CELL` or `UNKNOWN`.

    Returns:
      uint8, (..., 3), red, green, blue.
    """
    colours = np.zeros((*target.shape, 3), np.uint8)
    colours[target == MEMBRANE] = 255
    colours[target == UNKNOWN] = _UNKNOWN_COLOUR
    return colours


def shown_grey(raw: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values for the eye: uint8 as it is; others stretched between their 0.5th and 99.5th percentile.

    Args:
      raw: integer or float, (y, x).

    Returns:
      uint8, (y, x).
    """
    if raw.dtype == np.uint8:
        return raw
    low, high = np.percentile(raw, (0.5, 99.5))
    stretched = (raw.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    shown: NDArray[np.uint8] = np.rint(np.clip(stretched, 0, 1) * 255).astype(np.uint8)
    return shown
