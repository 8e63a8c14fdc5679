"""A mask volume laid over the raw volume that is predicted: where its voxels lie, and what they say.

    raw voxel --its centre, in nm--> nearest voxel of the mask --> not 0: valid

Any voxel size will do, so a mask drawn on a coarse level serves. The mask must reach as far as the raw volume does,
within one voxel of the coarser of the two: a voxel more or less is what halving an odd extent leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.validity import ChunkMap, NearestAxis, nearest_axis
from tessera.settings.places import input_path
from tessera.settings.predict import PredictSettings
from tessera.storage.identity import identity
from tessera.storage.locations import Place
from tessera.storage.stored import stored_chunks
from tessera.storage.validity import ReadValid
from tessera.storage.volumes import Volume, open_volume
from tessera.workflows.outputs import open_finished

_TOLERANCE = 0.01


@dataclass(frozen=True)
class MaskSource:
    """A mask volume, and where its voxels lie in the raw volume's, as plain values.

    Attributes:
      place: path or URL.
      level: number of its pyramid level.
      axes: z, y, x.
      stored: its chunks that are there; None where absent ones do not read as 0.
    """

    place: Place
    level: int
    axes: tuple[NearestAxis, ...]
    stored: ChunkMap | None = field(default=None, repr=False)

    @property
    def facts(self) -> dict[str, Any]:
        """What a ledger's key holds of it."""
        return {"path": str(self.place), "level": self.level, "identity": identity(self._open())}

    def _open(self) -> Volume:
        return open_volume(self.place, level=self.level)

    def reader(self) -> ReadValid:
        """What gives the mask for a box of the raw volume's voxels."""
        volume = self._open()

        def read(box: Box) -> NDArray[np.bool_]:
            bounds = list(zip(self.axes, box.start, box.stop, strict=True))
            spans = [axis.span(a, b) for axis, a, b in bounds]
            found = volume.read(Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))) != 0
            places = [axis.places(a, b) - span[0] for (axis, a, b), span in zip(bounds, spans, strict=True)]
            return np.asarray(found[np.ix_(*places)], bool)

        return read


def find_mask(settings: PredictSettings, volume: Volume) -> MaskSource:
    """The mask's level to read, laid over the raw volume.

    Of a pyramid, the level whose voxel size is the raw volume's; the finest where none is.

    Raises:
      FileNotFoundError, PermissionError: the mask is not there, or may not be read.
      ValueError: it is half-written, holds floats or channels, or its voxels do not cover the raw volume's.
    """
    place = input_path(str(settings.mask), anonymous=settings.storage.anonymous)
    finest = open_finished(place)
    level = _level_of(finest, volume)
    mask = finest if level == 0 else open_volume(place, level=level)
    if mask.dtype.kind == "f" or len(mask.shape) != 3:
        raise ValueError(
            f"the mask {mask.url} holds {mask.dtype} of shape {mask.shape}: a mask says yes or no at each z, y, x. "
            "Save one channel of it as uint8, 1 where to predict and 0 elsewhere."
        )
    axes = tuple(_axes(mask, volume))
    empty = mask.array.fill_value
    stored = None if empty else stored_chunks(mask, Box.whole(mask.shape))
    if stored is not None and not stored.stored.any():
        raise ValueError(
            f"the mask {mask.url} stores no voxel that is not 0: nothing would be predicted. Is the copy complete? "
            "Leave --mask out to predict everywhere."
        )
    return MaskSource(place, level, axes, stored)


def _level_of(mask: Volume, volume: Volume) -> int:
    wanted = volume.voxel_size_nm
    for number, level in enumerate(mask.levels):
        size = level.voxel_size_nm
        if wanted is not None and size is not None and np.allclose(size, wanted, rtol=_TOLERANCE):
            return number
    return 0


def _axes(mask: Volume, volume: Volume) -> list[NearestAxis]:
    if mask.voxel_size_nm is None or volume.voxel_size_nm is None:
        if mask.shape == volume.shape:
            return [NearestAxis(1.0, 0.0, n) for n in mask.shape]
        unsized = mask.url if mask.voxel_size_nm is None else volume.url
        raise ValueError(
            f"the mask {mask.url} has shape {mask.shape}, the volume {volume.shape}, and {unsized} does not say its "
            "voxel size: which voxels belong together is unknown. Save the mask as OME-Zarr with its scale and "
            "translation, or with the volume's shape."
        )
    zero = (0.0, 0.0, 0.0)
    grid = zip(volume.voxel_size_nm, volume.translation_nm or zero, volume.shape, strict=True)
    own = zip(mask.voxel_size_nm, mask.translation_nm or zero, mask.shape, strict=True)
    axes = []
    for name, ours, theirs in zip("zyx", grid, own, strict=True):
        try:
            axes.append(nearest_axis(*ours, *theirs))
        except ValueError as error:
            raise ValueError(
                f"the mask {mask.url} does not cover the volume {volume.url}: on {name} it reaches from {error}. "
                "Voxels would be taken from elsewhere. Crop or pad it to the volume's extent, or write its true scale "
                f"and translation: it has voxels of {list(mask.voxel_size_nm)} nm and shape {mask.shape}, the volume "
                f"{list(volume.voxel_size_nm)} nm and {volume.shape}."
            ) from None
    return axes
