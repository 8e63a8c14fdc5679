"""Probabilities as bytes: how predictions are stored, and how they are read back.

One definition for writer, reader and tests: truncation instead of rounding darkens a volume by half a step, and
`astype` alone turns 1.004 into 0 without a word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# A mean of probabilities may pass 1 by a rounding error; a logit passes it by far more.
_SLACK = 1e-6


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
    if probability.dtype.kind != "f":
        raise ValueError(
            f"{probability.dtype} is not a probability: give floats in [0, 1], or store the bytes as they are."
        )
    if probability.size and not (probability.min() >= -_SLACK and probability.max() <= 1 + _SLACK):
        raise ValueError(
            f"values span {probability.min()} to {probability.max()}, where probabilities lie in [0, 1]: as bytes they "
            "would wrap round. Apply the sigmoid or softmax before quantising."
        )
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
