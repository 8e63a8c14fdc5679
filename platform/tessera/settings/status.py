"""Settings of `tessera status`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.settings.common import StorageSettings


@dataclass(frozen=True)
class StatusSettings:
    """Tell how far the job that writes an output has come, whether it runs or not; nothing is touched.

    Args:
      output: the output of ingest, predict, segment or pyramid: a name under TESSERA_HOME/volumes, a path or a URL.
      json: print it for a program.
      storage: how outputs in object stores are reached.
    """

    output: str = ""
    json: bool = False
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("output is not given. Try --output my-membranes.")
