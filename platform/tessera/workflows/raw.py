"""The raw volume as a model reads it: which level of its pyramid, which voxel size, and whether its contrast is turned.

    model's voxel size --> the level that has it --> voxels --> finite? --> inverted if asked

Nothing of this is done silently: the level that is read is logged, kept with the output and part of its ledger's key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.model.bundle import Contract
from tessera.settings.places import input_path
from tessera.settings.predict import PredictSettings
from tessera.storage.locations import Place
from tessera.storage.ome import Level
from tessera.storage.pixels import invert_scale
from tessera.storage.volumes import Volume, open_volume
from tessera.workflows.outputs import open_finished

_log = logging.getLogger(__name__)

# The contract's own tolerance: a level that is chosen must fit the model.
_TOLERANCE = 0.01
Read = Callable[[Box], NDArray[Any]]


@dataclass(frozen=True)
class RawSource:
    """Where a prediction reads from, as plain values: what a worker needs to open the same voxels.

    Attributes:
      place: the raw volume's path or URL.
      level: number of the pyramid level.
      voxel_size_nm: what the user said where the volume does not.
      invert_contrast: whether grey values are turned round.
    """

    place: Place
    level: int = 0
    voxel_size_nm: tuple[float, float, float] | None = None
    invert_contrast: bool = False

    def open(self) -> Volume:
        """Open that level, to read."""
        return open_volume(self.place, level=self.level, voxel_size_nm=self.voxel_size_nm)

    def reader(self, volume: Volume) -> Read:
        """What gives the voxels of a box of the opened volume, as the model is to see them."""
        return partial(read_inverted if self.invert_contrast else read_finite, volume)


def find_raw(settings: PredictSettings, contract: Contract) -> tuple[RawSource, Volume]:
    """The level to read, and that level opened.

    Raises:
      FileNotFoundError, PermissionError: the volume is not there, or may not be read.
      ValueError: it is half-written, has no such level, or its contrast cannot be inverted.
    """
    place = input_path(settings.volume, anonymous=settings.storage.anonymous)
    finest = open_finished(place, voxel_size_nm=settings.voxel_size_nm if not settings.level else None)
    level = level_to_read(finest.levels, contract.voxel_size_nm) if settings.level is None else settings.level
    if level and settings.level is None:
        _log.warning(
            "%s: reading level %d, whose voxel size is the model's %s nm", place, level, contract.voxel_size_nm
        )
    source = RawSource(place, level, settings.voxel_size_nm, settings.invert_contrast)
    volume = source.open() if level else finest
    if source.invert_contrast and volume.dtype.kind == "f":
        raise ValueError(
            f"invert_contrast for {place}, whose voxels are {volume.dtype}: no largest value is stated to subtract "
            "them from. Convert it to uint8 or uint16 first."
        )
    return source, volume


def level_to_read(levels: Sequence[Level], wanted_nm: Sequence[float]) -> int:
    """Number of the first level of the wanted voxel size, within 1%; 0 where none has it, which the contract refuses.

    >>> levels = [Level("0", (50.0, 4.0, 4.0)), Level("1", (50.0, 8.0, 8.0))]
    >>> level_to_read(levels, (50.0, 8.0, 8.0)), level_to_read(levels, (50.0, 6.0, 6.0))
    (1, 0)
    """
    for number, level in enumerate(levels):
        if level.voxel_size_nm is not None and np.allclose(level.voxel_size_nm, wanted_nm, rtol=_TOLERANCE):
            return number
    return 0


def read_finite(volume: Volume, box: Box) -> NDArray[Any]:
    """Read voxels, and refuse NaN and infinity: one of them would make every voxel within the halo NaN.

    Raises:
      ValueError: names the volume and the box.
    """
    voxels = volume.read(box)
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise ValueError(f"{volume.url} holds NaN or infinite values in {box}: replace or mask them first.")
    return voxels


def read_inverted(volume: Volume, box: Box) -> NDArray[Any]:
    """Read voxels, and turn their scale round: the dtype's largest value becomes its least.

    Raises:
      ValueError: the voxels are floats.
    """
    return invert_scale(read_finite(volume, box), 8 * volume.dtype.itemsize, volume.url)
