"""What a stored pixel means: greys, colours, palettes and inverted scales, as arrays in and arrays out.

Viewers hide these differences and networks do not: an inverted section or a palette index read as a brightness trains
without an error and segments wrongly. Every rule lives here, on arrays, so that TIFF and PNG cannot disagree.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["image", "labels"]
Pixels = NDArray[Any]

IMAGE_DTYPES = ("bool", "uint8", "uint16", "int16", "float32")
LABEL_DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64")


def check_dtype(dtype: np.dtype[Any], kind: Kind, name: str) -> None:
    """Refuse a stored dtype that has no meaning as an image or as labels.

    Raises:
      ValueError: names the dtype, those allowed and a conversion.
    """
    allowed = IMAGE_DTYPES if kind == "image" else LABEL_DTYPES
    if dtype.name not in allowed:
        better = "float32 or uint16" if kind == "image" else "uint32"
        raise ValueError(
            f"{name}: dtype {dtype.name} is not supported for {kind} ({', '.join(allowed)}): its values would have to "
            f"be changed silently. Convert it to {better} first."
        )


def invert_scale(values: Pixels, bits: int, name: str) -> Pixels:
    """Turn a scale on which 0 is white into one on which 0 is black.

    Args:
      values: integer or bool, (y, x); signed integers use the whole signed range.
      bits: significant bits of an unsigned value, such as 12 for 12-bit data stored in uint16.
      name: the section, for the error.

    Raises:
      ValueError: `values` are floats, whose largest value is nowhere stated.

    >>> invert_scale(np.array([[0, 200]], np.uint8), 8, "page 0").tolist()
    [[255, 55]]
    """
    if values.dtype.kind == "f":
        raise ValueError(
            f"{name}: float values cannot be inverted, for no largest value is stated and the result would be negative."
            " Invert them yourself, or keep them as stored with invert=False."
        )
    if values.dtype.kind == "u":
        return np.asarray(values.dtype.type((1 << bits) - 1) - values)
    return np.asarray(~values)


def check_invertible_labels(values: Pixels, bits: int, name: str) -> None:
    """Refuse to invert labels that are ids: only a mask, all 0 or all bits, survives it.

    Raises:
      ValueError: names `invert`, which decides it.
    """
    if values.dtype.kind != "b" and not np.isin(values, (0, (1 << bits) - 1)).all():
        raise ValueError(
            f"{name}: labels stored with photometric MINISWHITE hold more than two values: inverting would rename "
            "every id and turn background 0 into the largest one. Say invert=False to keep ids, or invert=True."
        )


def has_equal_channels(values: Pixels) -> bool:
    """Whether the colours of a (y, x, 3) section are all greys."""
    return bool((values[..., 0] == values[..., 1]).all() and (values[..., 0] == values[..., 2]).all())


def collapse_grey(values: Pixels, name: str) -> Pixels:
    """One channel of a colour image whose three channels agree.

    Args:
      values: (y, x, 3).
      name: the section, for the error.

    Returns:
      (y, x), the same dtype.

    Raises:
      ValueError: the channels differ.
    """
    if not has_equal_channels(values):
        raise ValueError(
            f"{name}: colour image whose red, green and blue differ: which mixture is the grey level is not ours to "
            "guess. Convert the stack to grey (8 or 16 bit) first."
        )
    return np.asarray(values[..., 0])


def pack_colours(values: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Name every colour by one id, r << 16 | g << 8 | b, so that black stays 0.

    Args:
      values: uint8, (y, x, 3).

    Returns:
      uint32, (y, x).

    >>> pack_colours(np.array([[[1, 2, 3]]], np.uint8)).tolist()
    [[66051]]
    """
    red, green, blue = (values[..., i].astype(np.uint32) for i in range(3))
    return np.asarray(red << 16 | green << 8 | blue)


def look_up_grey(indices: Pixels, palette: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Grey levels of an indexed image whose used colours are greys.

    Args:
      indices: unsigned integer, (y, x).
      palette: uint8, (n, 3), red, green, blue.
      name: the section, for the error.

    Returns:
      uint8, (y, x).

    Raises:
      ValueError: an index lies beyond the palette, or a used colour is not grey.
    """
    if int(indices.max()) >= len(palette):
        raise ValueError(
            f"{name}: palette index {int(indices.max())} but only {len(palette)} colours: the file is corrupt."
        )
    colours: NDArray[np.uint8] = palette[indices]
    return collapse_grey(colours, name)


def check_finite(values: Pixels, name: str) -> None:
    """Refuse NaN and infinity: one such voxel spreads through every layer of a network.

    Raises:
      ValueError: counts them and names the section.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(np.size(values) - np.count_nonzero(np.isfinite(values)))
        raise ValueError(
            f"{name}: {count} values are NaN or infinite, and would spread through the network to every voxel near "
            "them. Replace them, for example by 0 or the section's mean."
        )
