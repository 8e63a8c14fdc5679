"""Sections as transparent pictures that a viewer lays over each other: raw below, membrane and cells above it."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tessera.images.colours import label_colours, shown_grey
from tessera.images.quantise import quantise

LayerKind = Literal["raw", "probability", "labels"]

# Told apart from any grey, and from most colours of cells.
_MEMBRANE = (255, 112, 0)


def section_picture(kind: LayerKind, section: NDArray[Any]) -> NDArray[np.uint8]:
    """One section for the eye.

    Args:
      kind: raw is shown in greys, opaque; probability as one colour, the more opaque the surer; labels with a colour
        per id, 0 being transparent.
      section: (y, x): integers or floats of raw, uint8 or 0..1 of probability, integers of labels.

    Returns:
      uint8, (y, x, 4): red, green, blue, opacity.
    """
    picture = np.full((*section.shape, 4), 255, np.uint8)
    if kind == "raw":
        picture[..., :3] = shown_grey(section)[..., np.newaxis]
    elif kind == "probability":
        picture[..., :3] = _MEMBRANE
        picture[..., 3] = _as_bytes(section)
    else:
        picture[..., :3] = label_colours(section)
        picture[..., 3] = np.where(section > 0, np.uint8(255), np.uint8(0))
    return picture


def _as_bytes(probability: NDArray[Any]) -> NDArray[np.uint8]:
    if probability.dtype == np.uint8:
        return probability
    # Other tools' may hold anything: a picture of it is better than none.
    return quantise(np.clip(np.nan_to_num(probability.astype(np.float32)), 0, 1))


def fitted(kind: LayerKind, section: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """A section stretched or shrunk to another number of pixels.

    Args:
      kind: ids are picked, never averaged.
      section: (y, x), or (y, x, colours).
      shape: pixels wanted, y, x.

    Returns:
      `section`'s dtype, of `shape`.
    """
    if section.shape[:2] == shape:
        return section
    if kind == "labels" or section.dtype.kind not in "u" or section.dtype.itemsize > 2:
        rows, columns = (_centres(n, m) for n, m in zip(section.shape[:2], shape, strict=True))
        return section[rows[:, np.newaxis], columns]
    return np.asarray(cv2.resize(section, shape[::-1], interpolation=cv2.INTER_AREA))


def _centres(stored: int, wanted: int) -> NDArray[np.int64]:
    """The stored pixel below the centre of each one wanted."""
    return (np.arange(wanted, dtype=np.int64) * 2 + 1) * stored // (2 * wanted)


def encoded_png(picture: NDArray[np.uint8]) -> bytes:
    """A picture as a PNG file.

    Args:
      picture: uint8, (y, x, 4): red, green, blue, opacity.

    Raises:
      ValueError: it has no pixels.
    """
    if not picture.size:
        raise ValueError(f"a picture of shape {picture.shape} has no pixels: give at least 1x1.")
    # Speed before size: it crosses the loopback once.
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return bytes(encoded)
