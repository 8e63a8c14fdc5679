"""Settings that several workflows share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
        if not self.experiment:
            raise ValueError("tracking.experiment is empty: runs need a place to be found in. Try 'tessera'.")


@dataclass(frozen=True, kw_only=True)
class RunnerSettings:
    """How blocks are run: the part that all block workflows have in common.

    Args:
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
    """

    engine: Engine = "ray"
    workers: int = 0
    attempts: int = 3

    def __post_init__(self) -> None:
        if self.workers < 0 or self.attempts < 1:
            raise ValueError(
                f"workers={self.workers} must be at least 0 and attempts={self.attempts} at least 1. Try 0 and 3."
            )


def check_layout(name: str, value: tuple[int, int, int] | None) -> None:
    """Refuse a tile, chunk, shard or block with an extent below one voxel."""
    if value is not None and min(value) < 1:
        legal = [1, 512, 512] if name == "tile" else [16, 256, 256]
        raise ValueError(f"{name}={list(value)}: every extent, z, y, x, must be at least 1 voxel. Try {legal}.")
