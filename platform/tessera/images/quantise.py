"""Probabilities as they are stored, and as they are read back: bytes by default, floats on request.

    uint8      255 p, rounded to the nearest      within 1/510
    float16    p                                  within 1/4096
    float32    p

One definition for writers, readers and tests: truncation instead of rounding darkens a volume by half a step, and
`astype` alone turns 1.004 into 0 without a word.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

StoredDtype = Literal["uint8", "float16", "float32"]
"""Voxel types in which probability is stored."""
STORED_DTYPES: tuple[str, ...] = get_args(StoredDtype)

# A mean of probabilities may pass 1 by a rounding error; a logit passes it by far more.
_SLACK = 1e-6


def encode(probability: NDArray[np.floating[Any]], dtype: StoredDtype) -> NDArray[Any]:
    """Probabilities as they are stored; what every writer of them calls.

    >>> encode(np.float32([0.0, 0.5, 1.0]), "uint8").tolist(), encode(np.float32([0.25]), "float16").tolist()
    ([0, 128, 255], [0.25])

    Args:
      probability: floating, any shape, in [0, 1].
      dtype: of the volume.

    Returns:
      `dtype`, the same shape, in [0, 1] if floating.

    Raises:
      ValueError: there is no such way to store them, or a value is NaN or outside [0, 1] by more than 1e-6.
    """
    if dtype not in STORED_DTYPES:
        raise ValueError(f"probabilities are stored as {', '.join(STORED_DTYPES)}, not {dtype}. Try uint8.")
    if dtype == "uint8":
        return quantise(probability)
    _check_probability(probability)
    return np.asarray(np.clip(probability, 0, 1), dtype)


def decode(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Stored probabilities as float32; what every reader of them calls.

    >>> decode(np.uint8([0, 255])).tolist(), decode(np.float16([0.25])).tolist()
    ([0.0, 1.0], [0.25])

    Args:
      stored: of one of `STORED_DTYPES`, any shape.

    Returns:
      float32, the same shape, in [0, 1]; `encode` gives the stored values back.

    Raises:
      ValueError: probabilities are not stored in this dtype, or floats are NaN or outside [0, 1].
    """
    if stored.dtype.name not in STORED_DTYPES:
        raise ValueError(
            f"stored probabilities are {', '.join(STORED_DTYPES)}, not {stored.dtype}: read the volume as it was "
            "written."
        )
    if stored.dtype == np.uint8:
        return dequantise(stored)
    _check_probability(stored)
    return stored.astype(np.float32)


def polarity_of(dtype: StoredDtype) -> str:
    """What a stored value means, in words for people and other programs.

    >>> polarity_of("float32")
    '1 = membrane, 0 = cell; probability = value'
    """
    if dtype == "uint8":
        return "255 = membrane, 0 = cell; probability = value / 255"
    return "1 = membrane, 0 = cell; probability = value"


def quantise(probability: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Probabilities as bytes: 255 p, rounded half to even.

    >>> quantise(np.float32([0.0, 0.5, 1.0])).tolist()
    [0, 128, 255]

    Args:
      probability: floating, any shape, in [0, 1].

    Returns:
      uint8, the same shape; within 1/510 of the probability after `dequantise`.

    Raises:
      ValueError: a value is NaN or outside [0, 1] by more than 1e-6; it would wrap round to another probability.
    """
    _check_probability(probability)
    return np.rint(probability * probability.dtype.type(255)).astype(np.uint8)


def dequantise(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes as probabilities: q / 255, so that `quantise` gives the same bytes back.

    Args:
      stored: uint8, any shape.

    Returns:
      float32, the same shape, in [0, 1].

    Raises:
      ValueError: the array is not uint8.
    """
    if stored.dtype != np.uint8:
        raise ValueError(f"stored probabilities are uint8, not {stored.dtype}: read the channel as it was written.")
    return stored.astype(np.float32) / np.float32(255)


def _check_probability(probability: NDArray[Any]) -> None:
    if probability.dtype.kind != "f":
        raise ValueError(
            f"{probability.dtype} is not a probability: give floats in [0, 1], or store the bytes as they are."
        )
    if probability.size and not (probability.min() >= -_SLACK and probability.max() <= 1 + _SLACK):
        raise ValueError(
            f"values span {probability.min()} to {probability.max()}, where probabilities lie in [0, 1]: they "
            "would wrap round as bytes. Apply the sigmoid or softmax first."
        )
