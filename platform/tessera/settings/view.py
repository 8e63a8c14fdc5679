"""Settings of `tessera view`."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tessera.settings.common import StorageSettings


@dataclass(frozen=True)
class ViewSettings:
    """Show a volume in a browser, above the volumes it was made from, until interrupted.

    Args:
      volume: a volume that ingest, predict or segment wrote, finished or not: a name, a path or a URL.
      host: address to listen at; any other than this machine's own lets others read the volumes.
      port: port to listen at; 0 takes a free one.
      neuroglancer: address of the neuroglancer that the link opens, which alone is allowed to read from its pages.
      storage: how volumes in object stores are reached.
    """

    volume: str = ""
    host: str = "127.0.0.1"
    port: int = 8480
    neuroglancer: str = "https://neuroglancer-demo.appspot.com"
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        if not self.volume:
            raise ValueError("volume is not given. Try --volume my-cells.")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port={self.port} is no TCP port: give one of 1024 to 65535, or 0. Try 8480.")
        if not self.host:
            raise ValueError("host is empty, which would listen everywhere. Try 127.0.0.1.")
        parts = urlsplit(self.neuroglancer)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.fragment or parts.query:
            raise ValueError(
                f"neuroglancer={self.neuroglancer} is no page's address: the link would open nothing. Try "
                "https://neuroglancer-demo.appspot.com."
            )

    @property
    def viewer_origin(self) -> str:
        """Scheme and host of the viewer's page, as browsers state it in `Origin`."""
        parts = urlsplit(self.neuroglancer)
        return f"{parts.scheme}://{parts.netloc}".lower()
