"""Settings of `tessera clean`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tessera.settings.common import TrackedOutputSettings
from tessera.settings.places import check_apart


@dataclass(frozen=True)
class CleanSettings(TrackedOutputSettings):
    """Remove small objects from a label volume, and fill holes in the others.

    Ids stay what they are.

    Args:
      volume: a volume of ids: a name, a path or a URL.
      output: name, path or URL of the cleaned volume.
      least_voxels: objects of fewer voxels become background; 0 keeps all.
      fill_holes: background that one object alone encloses becomes that object's, after small objects are gone - volume
        in 3D, section in each section by itself; none fills nothing. What reaches the volume's edge, or voxels that
        were never predicted, is no hole.
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
    least_voxels: int = 0
    fill_holes: Literal["none", "section", "volume"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("volume", "my-cells"), ("output", "my-clean-cells")):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given. Try --{name} {example}.")
        if self.least_voxels < 0:
            raise ValueError(f"least_voxels={self.least_voxels} is no size: give 0 to keep all objects, or 1000.")
        if self.least_voxels < 2 and self.fill_holes == "none":
            raise ValueError(
                "neither small objects nor holes are to go: the output would be a copy. Give --least_voxels 1000, or "
                "--fill_holes volume."
            )
        check_apart(self.output, self.volume)
