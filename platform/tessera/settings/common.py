"""Settings that several workflows share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol
from urllib.parse import urlsplit

from tessera.images.targets import LabelRule, UnknownLabel
from tessera.storage.ome import OmeZarr

Engine = Literal["ray", "serial"]


@dataclass(frozen=True)
class TrackingSettings:
    """Where MLflow keeps runs.

    Args:
      uri: tracking URI; null means the environment's MLFLOW_TRACKING_URI, else a SQLite file under TESSERA_HOME.
      experiment: name of the experiment.
    """

    uri: str | None = None
    experiment: str = "tessera"

    def __post_init__(self) -> None:
        if "@" in urlsplit(self.uri or "").netloc:
            # The address is not repeated: it holds a secret.
            raise ValueError(
                "tracking.uri holds credentials: they would be printed, and kept with every run and output. Give the "
                "address without, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or for a database "
                "MLFLOW_TRACKING_URI, in the environment."
            )
        if not self.experiment:
            raise ValueError("tracking.experiment is empty: runs need a place to be found in. Try 'tessera'.")


@dataclass(frozen=True)
class TrainingTrackingSettings(TrackingSettings):
    """Where MLflow keeps a training, and what it keeps besides.

    Args:
      uri: tracking URI; null means the environment's MLFLOW_TRACKING_URI, else a SQLite file under TESSERA_HOME.
      experiment: name of the experiment.
      system_metrics: log processor, memory, network and GPUs of the first worker's node beside the loss.
    """

    system_metrics: bool = True


@dataclass(frozen=True)
class StorageSettings:
    """How object stores are reached; the rest is in the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).

    Args:
      anonymous: read inputs given by URL without credentials, as public buckets allow; outputs always use them.
    """

    anonymous: bool = False


@dataclass(frozen=True, kw_only=True)
class RunnerSettings:
    """How blocks are run: the part that all block workflows have in common.

    Args:
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
      retry_failed: try blocks that an earlier run gave up again; without it they stay listed as failed.
      recheck: read every finished block again first, compare it with its checksum, and do again what differs.
      lease_expiry_s: seconds without a sign of life of this job's driver after which another machine may take its
        output over; on the same machine a driver that is gone is known at once.
    """

    engine: Engine = "ray"
    workers: int = 0
    attempts: int = 3
    retry_failed: bool = False
    recheck: bool = False
    lease_expiry_s: float = 60.0

    def __post_init__(self) -> None:
        if self.workers < 0 or self.attempts < 1:
            raise ValueError(
                f"workers={self.workers} must be at least 0 and attempts={self.attempts} at least 1. Try 0 and 3."
            )
        if not self.lease_expiry_s >= 1:
            raise ValueError(
                f"lease_expiry_s={self.lease_expiry_s} is not at least 1 s: a driver that is merely busy would be "
                "thought dead, and lose its output. Try 60."
            )


@dataclass(frozen=True, kw_only=True)
class OutputSettings(RunnerSettings):
    """How a block workflow lays its output out.

    Args:
      chunk: voxels a reader of the output decodes at once, z, y, x; null chooses.
      shard: voxels one task writes as one object; a multiple of the chunk; null chooses.
      ome_zarr: version of the output: 0.5 is sharded; 0.4, for older tools, keeps each chunk as a file.
      overwrite: delete an earlier output of that name first, if tessera made it.
      dry_run: only tell blocks, bytes, memory, time and cost, and refuse what cannot work; nothing is touched.
      price_per_hour: what this machine costs in an hour, for the cost that a dry run tells.
      json: print a dry run for a program.
    """

    chunk: tuple[int, int, int] | None = None
    shard: tuple[int, int, int] | None = None
    ome_zarr: OmeZarr = "0.5"
    overwrite: bool = False
    dry_run: bool = False
    price_per_hour: float | None = None
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk", "shard"):
            check_layout(name, getattr(self, name))
        self._check_dry_run()
        if self.ome_zarr == "0.4" and self.shard is not None:
            raise ValueError(
                f"shard={list(self.shard)} with ome_zarr 0.4, which has no shards: it would be ignored. Leave it out "
                f"and give --block {list(self.shard)} where tasks should be that large, or write 0.5."
            )

    def _check_dry_run(self) -> None:
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < float("inf"):
            raise ValueError(f"price_per_hour={self.price_per_hour} is no price. Try 1.50, in whatever money.")
        if not self.dry_run and (self.json or self.price_per_hour is not None):
            raise ValueError(
                "json and price_per_hour are for a dry run: a real job would pass over them. Say `--dry_run true`, or "
                "leave them out."
            )


@dataclass(frozen=True, kw_only=True)
class TrackedOutputSettings(OutputSettings):
    """The same for a workflow that MLflow tracks.

    Args:
      block: voxels per task, z, y, x: a whole number of output shards; null takes one shard.
      tracking: where MLflow keeps the run.
      storage: how inputs in object stores are reached.
    """

    block: tuple[int, int, int] | None = None
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layout("block", self.block)


class MeansLabels(Protocol):
    """Settings that say what labels mean."""

    @property
    def unknown_label(self) -> UnknownLabel:
        """The label of what nobody annotated."""

    @property
    def label_rule(self) -> LabelRule:
        """All of it together."""


def check_label_rule(prefix: str, settings: MeansLabels) -> None:
    """Refuse a border that cannot be drawn, and 0 as the label of unknown pixels: it says membrane, or cell.

    Args:
      prefix: of the settings' names, such as `data.`.
      settings: what is checked.
    """
    if settings.unknown_label == 0:
        raise ValueError(
            f"{prefix}unknown_label=0: 0 is membrane already, or cell where labels_are says membranes. Give "
            "unannotated pixels a value of their own, such as 255, and membrane 0."
        )
    try:
        _ = settings.label_rule
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def check_layout(name: str, value: tuple[int, int, int] | None) -> None:
    """Refuse a tile, chunk, shard or block with an extent below one voxel."""
    if value is not None and min(value) < 1:
        legal = [1, 512, 512] if name == "tile" else [16, 256, 256]
        raise ValueError(f"{name}={list(value)}: every extent, z, y, x, must be at least 1 voxel. Try {legal}.")
