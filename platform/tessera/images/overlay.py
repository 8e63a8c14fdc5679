"""Making a warp visible: the section's own pixel grid, drawn where a sampling map took it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def section_grid(sampling_map: NDArray[np.float32], spacing_px: int) -> NDArray[np.bool_]:
    """Where lines drawn on a section, every `spacing_px` along y and x, appear in a crop that the map samples.

    Straight and upright where nothing is warped; turned by rotations, bent by elastic fields.

    Args:
      sampling_map: float32, (2, h, w), pixels of the section, ordered (y, x): where each pixel of the crop is read.
      spacing_px: distance between two lines, pixels.

    Returns:
      bool, (h, w): a line passes between this pixel and the next one right or below.
    """
    squares = np.floor(sampling_map / spacing_px)
    lines = np.zeros(sampling_map.shape[1:], np.bool_)
    lines[:-1] |= (squares[:, :-1] != squares[:, 1:]).any(axis=0)
    lines[:, :-1] |= (squares[:, :, :-1] != squares[:, :, 1:]).any(axis=0)
    return lines


def painted(grey: NDArray[np.uint8], where: NDArray[np.bool_], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A grey picture in RGB with some pixels painted over.

    Args:
      grey: uint8, (y, x).
      where: bool, (y, x).
      colour: red, green, blue, 0 to 255.

    Returns:
      uint8, (y, x, 3).
    """
    rgb = np.repeat(grey[..., np.newaxis], 3, axis=2)
    rgb[where] = colour
    return rgb
