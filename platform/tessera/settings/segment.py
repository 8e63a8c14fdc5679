"""Settings of `tessera segment`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tessera.settings.common import TrackedOutputSettings
from tessera.settings.places import check_apart


@dataclass(frozen=True)
class WatershedSettings:
    """How the watershed cuts membrane probability into fragments.

    Args:
      smoothing_nm: standard deviation of the Gaussian over distances to membranes; more of it gives fewer, larger
        fragments.
      per_section: cut each section by itself; null does so where voxels are more than three times as deep as wide.
      halo_px: voxels along x that a block reads around itself, as many nm along the other axes; blocks agree on a
        fragment once it reaches less far.
      overlap: share of the voxels of two blocks' fragments that both must have for them to be one, where there is no
        membrane; all of them where there is certainly one.
    """

    smoothing_nm: float = 8.0
    per_section: bool | None = None
    halo_px: int = 96
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing_nm < float("inf") or self.halo_px < 1:
            raise ValueError(
                f"watershed.smoothing_nm={self.smoothing_nm} must be at least 0 and watershed.halo_px={self.halo_px} "
                "at least 1: blocks without a voxel in common cannot agree on a fragment. Try 8 and 96."
            )
        if not 0 < self.overlap <= 1:
            raise ValueError(f"watershed.overlap={self.overlap} is no share above 0. Try 0.5.")


@dataclass(frozen=True)
class AgglomerationSettings:
    """How fragments become cells; other values cut no fragment again, and read the stored graph.

    Args:
      threshold: membrane probability along the contact of two fragments, below which they are one cell.
      evidence: what of the probability along a contact counts: its mean, median or upper quartile.
      link: share of the smaller of two cells in neighbouring sections that the other has to cover for both to be one;
        only where sections were cut by themselves.
    """

    threshold: float = 0.5
    link: float = 0.5
    evidence: Literal["mean", "median", "upper_quartile"] = "mean"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or not 0 < self.link <= 1:
            raise ValueError(
                f"agglomeration.threshold={self.threshold} must be a probability and agglomeration.link={self.link} a "
                "share above 0. Try 0.5 and 0.5."
            )


@dataclass(frozen=True)
class SegmentSettings(TrackedOutputSettings):
    """Cut membrane probability into cells, block by block, with ids of the whole volume.

    Args:
      volume: the probability volume that `tessera predict` wrote: a name, a path or a URL.
      output: name, path or URL of the label volume.
      threshold: cell probability above which a pixel is cell; null takes the one chosen in training.
      connectivity: 4 or 8 neighbours within a section, each cut by itself; 6, 18 or 26 in the volume.
      method: components takes what touches as one cell; watershed cuts fragments, and merges them by the membrane
        between them.
      watershed: how fragments are cut.
      agglomeration: how they are merged.
      fragments: name, path or URL of the volume of fragments, which several outputs can share; null adds `-fragments`
        to the output's.
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
    method: Literal["components", "watershed"] = "components"
    watershed: WatershedSettings = field(default_factory=WatershedSettings)
    agglomeration: AgglomerationSettings = field(default_factory=AgglomerationSettings)
    fragments: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("volume", "my-membranes"), ("output", "my-cells")):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given. Try --{name} {example}.")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} is no probability below 1: nothing would be cell. Try 0.5.")
        check_apart(self.output, self.volume)
        if self.method == "watershed":
            check_apart(self.fragments_name, self.volume)
            check_apart(self.output, self.fragments_name)

    @property
    def fragments_name(self) -> str:
        """Of the volume of fragments."""
        stem, dot, ending = self.output.rstrip("/").rpartition(".zarr")
        return self.fragments or (f"{stem}-fragments{dot}" if dot and not ending else f"{self.output}-fragments")
