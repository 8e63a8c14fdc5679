"""Settings of `tessera pyramid`."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.settings.common import RunnerSettings


@dataclass(frozen=True)
class PyramidSettings(RunnerSettings):
    """Add coarser levels to a volume that tessera made, for viewers and for models of coarser voxels.

    Args:
      volume: the volume: a name under TESSERA_HOME/volumes, a path or a URL. Images and probabilities are averaged, of
        labels the most frequent id is kept.
      levels: how many coarser levels; null halves while y or x is above 256 voxels.
      overwrite: delete coarser levels that are there first.
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
      retry_failed: try blocks that an earlier run gave up again; without it they stay listed as failed.
      recheck: read every finished block again first, compare it with its checksum, and do again what differs.
      lease_expiry_s: seconds without a sign of life of this job's driver after which another machine may take its
        output over; on the same machine a driver that is gone is known at once.
    """

    volume: str = ""
    levels: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.volume:
            raise ValueError("volume is not given. Try --volume my-membranes.")
        if self.levels is not None and self.levels < 1:
            raise ValueError(f"levels={self.levels}: a pyramid has at least one coarser level. Try 3, or leave it out.")
