"""Settings of `tessera objects`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.settings.common import RunnerSettings, StorageSettings


@dataclass(frozen=True)
class ObjectsSettings(RunnerSettings):
    """List the objects of a label volume, with size and place.

    The table holds id, voxels, bounding box, centroid, and whether the volume's edge cuts the object.

    Args:
      volume: a volume of ids: a name under TESSERA_HOME/volumes, a path or a URL.
      table: where the Parquet file goes, a path or a URL; null puts it beside the volume, as NAME.objects.parquet.
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
      retry_failed: try blocks that an earlier run gave up again; without it they stay listed as failed.
      recheck: list the objects of every block again whose list is not as it was recorded.
      lease_expiry_s: seconds without a sign of life of this job's driver after which another machine may go on with its
        blocks; on the same machine a driver that is gone is known at once.
      storage: how volumes in object stores are reached.
    """

    volume: str = ""
    table: str | None = None
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.volume:
            raise ValueError("volume is not given. Try --volume my-cells.")
        if self.table is not None and not self.table.endswith(".parquet"):
            raise ValueError(f"table={self.table} is to be a Parquet file: end its name in .parquet.")
