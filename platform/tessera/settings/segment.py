"""Settings of `tessera segment`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tessera.settings.common import TrackedOutputSettings
from tessera.settings.places import check_apart


@dataclass(frozen=True)
class SegmentSettings(TrackedOutputSettings):
    """Cut membrane probability into cells: components of each section or of the volume, stitched over blocks.

    Args:
      volume: the probability volume that `tessera predict` wrote: a name, a path or a URL.
      output: name, path or URL of the label volume.
      threshold: cell probability above which a pixel is cell; null takes the one chosen in training.
      connectivity: 4 or 8 neighbours within a section, each cut by itself; 6, 18 or 26 in the volume.
      block: voxels per task, z, y, x: a whole number of output shards; null takes one shard.
      chunk: voxels a reader of the output decodes at once; null chooses.
      shard: voxels per output object; null chooses.
      ome_zarr: version of the output: 0.5 is sharded; 0.4, for older tools, keeps each chunk as a file.
      overwrite: delete an earlier output of that name first, if tessera made it.
      dry_run: only tell blocks, bytes, memory, time and cost, and refuse what cannot work; nothing is touched.
      price_per_hour: what this machine costs in an hour, for the cost that a dry run tells.
      json: print a dry run for a program.
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
      retry_failed: try blocks that an earlier run gave up again; without it they stay listed as failed.
      recheck: read every finished block again first, compare it with its checksum, and do again what differs.
      lease_expiry_s: seconds without a sign of life of this job's driver after which another machine may take its
        output over; on the same machine a driver that is gone is known at once.
      tracking: where MLflow keeps the run.
      storage: how inputs in object stores are reached.
    """

    volume: str = ""
    output: str = ""
    threshold: float | None = None
    connectivity: Literal[4, 8, 6, 18, 26] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("volume", "my-membranes"), ("output", "my-cells")):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given. Try --{name} {example}.")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} is no probability below 1: nothing would be cell. Try 0.5.")
        check_apart(self.output, self.volume)
