"""Settings of `tessera audit`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.settings.common import RunnerSettings, StorageSettings, TrackingSettings


@dataclass(frozen=True)
class AuditSettings(RunnerSettings):
    """Look for seams in a prediction: do faces of blocks and tiles stand out?

    Args:
      output: the probability volume that `tessera predict` wrote: a name under TESSERA_HOME/volumes, a path or a URL.
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
      retry_failed: try blocks that an earlier run gave up again; an audit always does.
      recheck: read every finished block again first; an audit has no voxels of its own to compare.
      lease_expiry_s: seconds without a sign of life of this job's driver after which another machine may take its
        output over; on the same machine a driver that is gone is known at once.
      tracking: where MLflow keeps the run of the prediction, to which the finding is added.
      storage: how outputs in object stores are reached.
    """

    output: str = ""
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output:
            raise ValueError("output is not given. Try --output my-membranes.")
