"""The raw volume as a model reads it: which level of its pyramid, which voxel size, and whether its contrast is turned.

    model's voxel size --> the level that has it, else resampled if asked --> voxels --> finite? --> inverted if asked

Nothing of this is done silently: what is read is logged, kept with the output and part of its ledger's key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.model.bundle import Contract
from tessera.settings.places import input_path
from tessera.settings.predict import PredictSettings, parse_roi
from tessera.settings.regions import parse_roi_nm
from tessera.storage.locations import Place
from tessera.storage.ome import Level
from tessera.storage.pixels import invert_scale
from tessera.storage.resampled import SAME_SIZE, resampled, suitable_level
from tessera.storage.volumes import Volume, open_volume
from tessera.workflows.outputs import open_finished

_log = logging.getLogger(__name__)

Read = Callable[[Box], NDArray[Any]]


@dataclass(frozen=True)
class RawSource:
    """Where a prediction reads from, as plain values: what a worker needs to open the same voxels.

    Attributes:
      place: the raw volume's path or URL.
      level: number of the pyramid level.
      voxel_size_nm: what the user said where the volume does not.
      resample_to_nm: the voxel size that the level is read at; None takes its own.
      invert_contrast: whether grey values are turned round.
    """

    place: Place
    level: int = 0
    voxel_size_nm: tuple[float, float, float] | None = None
    invert_contrast: bool = False
    resample_to_nm: tuple[float, float, float] | None = None

    def open(self) -> Volume:
        """Open that level, to read."""
        volume = open_volume(self.place, level=self.level, voxel_size_nm=self.voxel_size_nm)
        return volume if self.resample_to_nm is None else resampled(volume, self.resample_to_nm)

    def resampling_of(self, volume: Volume) -> dict[str, Any]:
        """What a job's key and its output's attributes say of the resampling; nothing where there is none."""
        if volume.stored is volume:
            return {}
        sizes = {"from_nm": volume.stored.voxel_size_nm, "to_nm": volume.voxel_size_nm}
        return {"resampled": {"rule": "linear", **sizes}}

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
    if level is None:
        level = suitable_level(finest.levels, contract.voxel_size_nm) if settings.resample else 0
    elif level and settings.level is None:
        _log.warning(
            "%s: reading level %d, whose voxel size is the model's %s nm", place, level, contract.voxel_size_nm
        )
    source = RawSource(place, level, settings.voxel_size_nm, settings.invert_contrast)
    volume = source.open() if level else finest
    if settings.resample:
        source, volume = _resampled(source, volume, contract)
    if source.invert_contrast and volume.dtype.kind == "f":
        raise ValueError(
            f"invert_contrast for {place}, whose voxels are {volume.dtype}: no largest value is stated to subtract "
            "them from. Convert it to uint8 or uint16 first."
        )
    return source, volume


def _resampled(source: RawSource, volume: Volume, contract: Contract) -> tuple[RawSource, Volume]:
    """The same at the model's voxel size, which is said; as they are where that is the volume's, or none can be."""
    stored, wanted = volume.voxel_size_nm, contract.voxel_size_nm
    if stored is None or len(volume.shape) != 3:  # the contract refuses them, and says more
        return source, volume
    read = resampled(volume, wanted)
    if read is volume:
        return source, volume
    _log.warning(
        "%s: reading level %d resampled from %s to the model's %s nm", source.place, source.level, stored, wanted
    )
    if any(a > b * (1 + SAME_SIZE) for a, b in zip(stored, wanted, strict=True)):
        _log.warning(
            "its voxels are larger than the model's: what they do not show is made up between them, and membranes "
            "thinner than a voxel stay lost"
        )
    return replace(source, resample_to_nm=wanted), read


def region_of(settings: PredictSettings, volume: Volume) -> Box:
    """The voxels of the opened level that are to be predicted.

    Raises:
      ValueError: the region is no region of it, or the volume has channels.
    """
    region = parse_roi(settings.roi, volume.shape)
    if settings.roi_nm is None:
        return region
    return parse_roi_nm(settings.roi_nm, volume.shape, volume.voxel_size_nm, volume.corner_nm)


def level_to_read(levels: Sequence[Level], wanted_nm: Sequence[float]) -> int | None:
    """Number of the first level of the wanted voxel size, within 1%; None where none has it.

    >>> levels = [Level("0", (50.0, 4.0, 4.0)), Level("1", (50.0, 8.0, 8.0))]
    >>> level_to_read(levels, (50.0, 8.0, 8.0)), level_to_read(levels, (50.0, 6.0, 6.0))
    (1, None)
    """
    for number, level in enumerate(levels):
        if level.voxel_size_nm is not None and np.allclose(level.voxel_size_nm, wanted_nm, rtol=SAME_SIZE):
            return number
    return None


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
