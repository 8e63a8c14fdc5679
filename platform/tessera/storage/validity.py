"""The validity mask of an output: which of its voxels were predicted at all, kept beside them.

    membranes.zarr/
      0        probability; 0 where nothing was predicted, which is not "cell"
      valid    uint8, 1 = predicted; of the same shape, chunks and shards

Whole sections that are invalid are listed in the `invalid_sections` attribute; the array is there only where validity
is more than that. A block's task writes its shards of both, so each has one writer. A block that was skipped writes
neither: what is absent reads as 0, not valid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.validity import valid_in
from tessera.storage.drafts import ArrayDraft, add_array
from tessera.storage.ome import Level
from tessera.storage.volumes import Volume, open_array

VALID = "valid"
ReadValid = Callable[[Box], NDArray[np.bool_]]
"""Bool of a box's shape, true where the voxel is valid."""


def validity_attribute() -> dict[str, Any]:
    """What an output says of its mask in its `tessera` attribute."""
    return {"path": VALID, "meaning": "1 = predicted; 0 = outside the mask, or raw voxels that are not stored"}


def add_validity(volume: Volume) -> None:
    """Make the mask's array in a volume's group; one that is there stays."""
    draft = ArrayDraft(volume.shape, np.dtype(np.uint8), volume.layout)
    add_array(volume.place, VALID, draft, "0.4" if volume.zarr_format == 2 else "0.5")


def open_validity(volume: Volume, *, writable: bool = False) -> Volume | None:
    """The mask of an opened output; None where its whole sections say all.

    Raises:
      ValueError: the attributes name a mask that is not there.
    """
    told = volume.attributes.get("validity")
    if told is None:
        return None
    finest = volume.levels[0]
    level = Level(str(told["path"]), finest.voxel_size_nm, finest.translation_nm)
    return open_array(volume, level, writable=writable)


def valid_reader(volume: Volume) -> ReadValid:
    """What tells which voxels of an output, at its finest level, are valid: its sections and its mask together."""
    invalid, mask = volume.invalid_sections, open_validity(volume)

    def read(box: Box) -> NDArray[np.bool_]:
        return valid_in(box, invalid, None, None if mask is None else mask.read(box) != 0)

    return read
