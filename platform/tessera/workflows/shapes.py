"""Surfaces and skeletons of chosen objects: each is read in the box around it, which the object table knows."""

from __future__ import annotations

import logging
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tessera.geometry.boxes import Box
from tessera.labels.shapes import ENDINGS, check_installed, mesh_bytes, skeleton_bytes
from tessera.settings.places import input_path
from tessera.settings.shapes import ShapesSettings
from tessera.storage.objects import write_bytes
from tessera.storage.volumes import Volume
from tessera.workflows.objects import check_ids, objects_of
from tessera.workflows.outputs import open_finished

_log = logging.getLogger(__name__)

# A byte per voxel as read once more, padded, and the library's own.
_BYTES_BESIDES = 6
_GIB = 2**30


def shapes(settings: ShapesSettings) -> Path:
    """Run the workflow; returns the folder.

    Raises:
      ValueError, OSError: the volume holds no ids, or not these; an object is too large; a library is missing.
      BlocksFailedError: some blocks could not be read.
    """
    check_installed(settings.what)
    volume = open_finished(input_path(settings.volume, anonymous=settings.storage.anonymous))
    check_ids(volume)
    if volume.voxel_size_nm is None:
        raise ValueError(f"{volume.url} has no voxel size: shapes are in nanometers. Write it again with one.")
    boxes = _boxes(settings, volume)
    folder = Path(settings.output).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name, box in boxes.items():
        place = folder / f"{name}{ENDINGS[settings.form]}"
        write_bytes(place, _shape(settings, volume, name, box))
        _log.info("%s: %s", place, "x".join(map(str, box.shape)))
    return folder


def _boxes(settings: ShapesSettings, volume: Volume) -> dict[int, Box]:
    """The box of each object.

    Raises:
      ValueError: there is no such object, or it is too large.
    """
    found = objects_of(volume, settings)
    rows = {name: int(np.searchsorted(found.ids, np.uint64(name))) for name in dict.fromkeys(settings.ids)}
    missing = [name for name, row in rows.items() if row == len(found.ids) or int(found.ids[row]) != name]
    if missing:
        raise ValueError(f"{volume.url} has no object of id {missing}: tessera objects lists those there are.")
    boxes = {name: Box(tuple(found.start[row].tolist()), tuple(found.stop[row].tolist())) for name, row in rows.items()}
    for name, box in boxes.items():
        needed = prod(box.shape) * (volume.dtype.itemsize + _BYTES_BESIDES) / _GIB
        if needed > settings.memory_gib:
            raise ValueError(
                f"object {name} lies in a box of {box.shape} voxels, which take {needed:.1f} GiB: more than "
                f"memory_gib={settings.memory_gib:g}. Give more, or take it from a coarser volume."
            )
    return boxes


def _shape(settings: ShapesSettings, volume: Volume, name: int, box: Box) -> bytes:
    size = volume.voxel_size_nm
    assert size is not None
    origin = np.array(box.start) * size + np.array(volume.translation_nm or (0.0, 0.0, 0.0))
    inside = volume.read(box) == np.uint64(name)
    form: Any = settings.form
    if settings.what == "mesh":
        return mesh_bytes(inside, size, origin.tolist(), settings.max_error_nm, form)
    return skeleton_bytes(inside, size, origin.tolist(), form)
