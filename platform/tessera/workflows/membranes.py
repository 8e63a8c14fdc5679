"""Membrane probability as segmentations take it: checked, and cut at a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.images.quantise import STORED_DTYPES, decode
from tessera.settings.segment import SegmentSettings
from tessera.storage.volumes import Volume
from tessera.workflows.predict import KIND as PROBABILITY

SECTION_CELLS, CELLS = "cells per section", "cells"
"""What labels are: cells of each section by itself, or of the volume."""


def checked_threshold(settings: SegmentSettings, volume: Volume) -> float:
    """The threshold of cell probability that a segmentation uses: the one given, else the model's.

    Raises:
      ValueError: the volume is no membrane probability, or no threshold is known.
    """
    if volume.attributes.get("kind") != PROBABILITY or volume.dtype.name not in STORED_DTYPES:
        raise ValueError(
            f"{volume.url} is not membrane probability as `tessera predict` writes it ({', '.join(STORED_DTYPES)}): "
            f"its {volume.dtype} grey values would be cut into cells. Run tessera predict on it first."
        )
    if len(volume.shape) != 3:
        raise ValueError(f"{volume.url} has shape {volume.shape}: cells are cut in z, y, x. Save one channel of it.")
    threshold = settings.threshold if settings.threshold is not None else volume.attributes.get("threshold")
    if threshold is None:
        raise ValueError(f"no threshold is known for {volume.url}: its model chose none. Try --threshold 0.5.")
    return float(threshold)


def is_cell(stored: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Where the cell probability is above a threshold.

    >>> is_cell(np.uint8([0, 127, 128, 255]), 0.5).tolist()
    [True, True, False, False]

    Args:
      stored: membrane probability, in one of `STORED_DTYPES`.
      threshold: of cell probability.
    """
    if stored.dtype == np.uint8:
        # Of 256 values each is asked once: bytes are compared ten times as fast as they are decoded.
        below = np.count_nonzero(1.0 - decode(np.arange(256, dtype=np.uint8)) > np.float32(threshold))
        return stored < below
    return 1.0 - decode(stored) > np.float32(threshold)
