"""Settings of `tessera shapes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from tessera.settings.common import RunnerSettings, StorageSettings


@dataclass(frozen=True)
class ShapesSettings(RunnerSettings):
    """Write surfaces or skeletons of chosen objects, in nanometers.

    Args:
      volume: a volume of ids: a name under TESSERA_HOME/volumes, a path or a URL.
      ids: which objects; those that cost most are listed by `tessera evaluate --cells`.
      output: the folder that the files go to.
      what: mesh or skeleton.
      file_format: ply, obj or precomputed (neuroglancer) of a mesh; swc or precomputed of a skeleton; null takes ply
        and swc.
      max_error_nm: how far simplification may move a surface; 0 keeps every face.
      memory_gib: what the box around one object may take; larger objects are refused.
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
    ids: list[int] = field(default_factory=list)
    output: str = ""
    what: Literal["mesh", "skeleton"] = "mesh"
    file_format: Literal["ply", "obj", "swc", "precomputed"] | None = None
    max_error_nm: float = 40.0
    memory_gib: float = 4.0
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, example in (("volume", "my-cells"), ("ids", "[5,9]"), ("output", "my-shapes")):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given. Try --{name} {example}.")
        if min(self.ids) < 1:
            raise ValueError(f"ids hold {min(self.ids)}: objects have ids above 0.")
        allowed = ("ply", "obj", "precomputed") if self.what == "mesh" else ("swc", "precomputed")
        if self.form not in allowed:
            raise ValueError(f"file_format={self.form} is none of a {self.what}: give {' or '.join(allowed)}.")
        if not (isfinite(self.max_error_nm) and self.max_error_nm >= 0 and self.memory_gib > 0):
            raise ValueError(
                f"max_error_nm={self.max_error_nm:g} must be at least 0 and memory_gib={self.memory_gib:g} above 0. "
                "Try 40 and 4."
            )

    @property
    def form(self) -> str:
        """The file format."""
        return self.file_format or ("ply" if self.what == "mesh" else "swc")
