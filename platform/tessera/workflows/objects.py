"""A table of a volume's objects: block by block, then one row per object.

block --> statistics of the objects in it, on disk --> driver: added up by id --> Parquet
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.labels.objects import ObjectStats, merge_stats, object_stats
from tessera.settings.common import RunnerSettings
from tessera.settings.objects import ObjectsSettings
from tessera.settings.places import input_path, output_path
from tessera.storage.identity import identity
from tessera.storage.locations import Place
from tessera.storage.tables import write_table
from tessera.storage.volumes import Volume, open_volume
from tessera.workflows.array_stages import (
    Arrays,
    MakeArrays,
    added_up,
    fitting_runner,
    plan_stage,
    run_stage,
    stage_arrays,
)
from tessera.workflows.block_jobs import session
from tessera.workflows.outputs import open_finished

_log = logging.getLogger(__name__)

STAGE, METHOD = "objects", 1


def objects(settings: ObjectsSettings) -> Place:
    """Run the workflow; returns the table's place.

    Raises:
      ValueError, OSError: the volume holds no ids, or the table cannot be written.
      BlocksFailedError: some blocks could not be read.
    """
    volume = open_finished(input_path(settings.volume, anonymous=settings.storage.anonymous))
    check_ids(volume)
    place = _table_place(settings, volume)
    found = objects_of(volume, settings)
    write_table(place, table_of(found, volume))
    _log.info("%s: %d objects", place, len(found.ids))
    return place


def objects_of(volume: Volume, runner: RunnerSettings) -> ObjectStats:
    """The statistics of a volume's objects; of one that was listed before no voxel is read.

    Raises:
      BlocksFailedError: some blocks could not be read.
    """
    job = plan_stage(volume, "objects", {"volume": identity(volume), "method": METHOD})
    own = fitting_runner(runner, job, len(job.grid))
    with session(own):
        run_stage(job, STAGE, partial(make_lister, volume.place), own)
    blocks = stage_arrays(job.path, STAGE, range(len(job.grid)))
    return added_up(map(ObjectStats.from_arrays, blocks), merge_stats)


def _table_place(settings: ObjectsSettings, volume: Volume) -> Place:
    if settings.table is not None:
        return output_path(settings.table, ".parquet")
    return volume.place.with_name(volume.place.name.removesuffix(".zarr") + ".objects.parquet")


def check_ids(volume: Volume) -> None:
    """Refuse a volume that holds no ids.

    Raises:
      ValueError: says what it holds.
    """
    kind = volume.attributes.get("kind")
    if volume.dtype.kind != "u" or len(volume.shape) != 3 or kind in ("image", "raw", "membrane probability"):
        raise ValueError(
            f"{volume.url} holds {kind or 'voxels'} of {volume.dtype} and shape {volume.shape}: objects have unsigned "
            "ids, in z, y, x. Give a volume that tessera segment wrote, or one ingested with --kind labels."
        )


def make_lister(place: Place) -> MakeArrays:
    """In a worker: open the volume; returns the function that lists a block's objects."""
    volume = open_volume(place)

    def listed(box: Box) -> Arrays:
        return object_stats(volume.read(box), box.start).to_arrays()

    return listed


def table_of(found: ObjectStats, volume: Volume) -> dict[str, NDArray[Any]]:
    """The columns of the table.

    Returns:
      `id` and `voxels`; `z_start` to `x_stop`, voxels, half-open; `z_nm`, `y_nm` and `x_nm`, the centroid in the
      coordinates of the volume's metadata, where the centre of voxel 0 is its translation; `touches_border`. Without a
      voxel size the centroid is left out.
    """
    columns: dict[str, NDArray[Any]] = {"id": found.ids, "voxels": found.voxels}
    for i, axis in enumerate("zyx"):
        columns |= {f"{axis}_start": found.start[:, i], f"{axis}_stop": found.stop[:, i]}
    if volume.voxel_size_nm is not None:
        nm = found.centroid * np.array(volume.voxel_size_nm) + np.array(volume.translation_nm or (0.0, 0.0, 0.0))
        columns |= {f"{axis}_nm": nm[:, i] for i, axis in enumerate("zyx")}
    return {**columns, "touches_border": found.touches_border(volume.shape)}
