"""Settings of `tessera ingest`."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from tessera.settings.common import OutputSettings
from tessera.storage.hdf5 import is_hdf5


@dataclass(frozen=True)
class IngestSettings(OutputSettings):
    """Turn a TIFF stack, a folder of slices, or a dataset of an HDF5 file into a sharded OME-Zarr volume.

    Args:
      source: the multi-page TIFF, the folder of numbered TIFF or PNG slices, or the HDF5 file, on a path that every
        node sees.
      output: name of the volume (under TESSERA_HOME/volumes), a path ending in .zarr, or a URL such as s3://bucket/em.
      voxel_size_nm: z, y, x in nanometres, such as [50, 4, 4]; null takes what an HDF5 file says.
      offset_nm: where voxel 0 lies, z, y, x in nanometres, in a volume that this one is a part of; null takes what an
        HDF5 file says, else it lies at the origin.
      dataset: which dataset of an HDF5 file; null takes where CREMI keeps them, volumes/raw for an image and
        volumes/labels/neuron_ids for labels, or the only volume that there is.
      kind: image, or labels (colours become ids, and values are never interpolated).
      invert: force (true) or forbid (false) inverting grey values; null follows the file (MINISWHITE is inverted).
      memory_gib: what a worker may need, in GiB; strips and tiles are decoded again where a row of shards needs more.
      chunk: voxels a reader decodes at once, z, y, x; null chooses.
      shard: voxels one task writes as one object; a multiple of the chunk; null chooses.
      ome_zarr: version of the output: 0.5 is sharded; 0.4, for older tools, keeps each chunk as a file.
      overwrite: delete an earlier volume of that name first, if tessera made it.
      dry_run: only tell blocks, bytes, memory, time and cost, and refuse what cannot work; nothing is touched.
      price_per_hour: what this machine costs in an hour, for the cost that a dry run tells.
      json: print a dry run for a program.
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray, and reads
        the source through dask.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
      retry_failed: try blocks that an earlier run gave up again; without it they stay listed as failed.
      recheck: read every finished block again first, compare it with its checksum, and do again what differs.
      lease_expiry_s: seconds without a sign of life of this job's driver after which another machine may take its
        output over; on the same machine a driver that is gone is known at once.
    """

    source: str = ""
    output: str = ""
    voxel_size_nm: tuple[float, float, float] | None = None
    offset_nm: tuple[float, float, float] | None = None
    dataset: str | None = None
    kind: Literal["image", "labels"] = "image"
    invert: bool | None = None
    memory_gib: float = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("source", "output"):
            if not getattr(self, name):
                raise ValueError(
                    f"{name} is not given. Try --{name} {'stack.tif' if name == 'source' else 'my-volume'}."
                )
        if self.offset_nm is not None and not all(map(isfinite, self.offset_nm)):
            raise ValueError(f"offset_nm={list(self.offset_nm)} is no place: give finite nanometres, z, y, x.")
        if not (isfinite(self.memory_gib) and self.memory_gib > 0):
            raise ValueError(f"memory_gib={self.memory_gib:g}: a worker needs some memory. Try 0.85.")
        sizes = self.voxel_size_nm
        if sizes is None and is_hdf5(self.source):
            return  # which may say it itself
        if sizes is None or not all(isfinite(size) and size > 0 for size in sizes):
            fault = "is not given" if sizes is None else f"{list(sizes)} is not above 0 and finite on each axis"
            raise ValueError(
                f"voxel_size_nm {fault}: a volume without its true voxel size fits no model later. Give z, y, x in "
                "nanometres, such as --voxel_size_nm '[50, 4, 4]'."
            )
