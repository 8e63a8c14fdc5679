"""Where volumes lie, as values: a local folder is a `Path`, a prefix in an object store or on a web server a `Url`.

A `Path` would swallow one of a URL's slashes, and a bare string does not know its parent. Both kinds here join with
`/`, have a `name` and print as what a user would type; nothing is opened. Credentials never are part of a place: places
are logged, kept in attributes and sent to workers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import normpath
from typing import TypeAlias
from urllib.parse import urlsplit

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/")
WRITABLE_SCHEMES = ("s3", "gs")
SCHEMES = (*WRITABLE_SCHEMES, "http", "https")


@dataclass(frozen=True, slots=True, order=True)
class Url:
    """A prefix, or one object, in a bucket or on a web server.

    `anonymous` reads without credentials; it is not part of the address.

    >>> str(Url("s3", "lab", "em/raw.zarr") / "zarr.json")
    's3://lab/em/raw.zarr/zarr.json'
    """

    scheme: str
    host: str
    key: str
    anonymous: bool = False

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    def __truediv__(self, part: str) -> Url:
        return replace(self, key=f"{self.key}/{part}".strip("/"))

    @property
    def root(self) -> str:
        """The bucket or server alone."""
        return f"{self.scheme}://{self.host}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rsplit("/", 1)[-1]

    @property
    def parent(self) -> Url:
        """One level up; the bucket itself is its own parent."""
        return replace(self, key=self.key.rpartition("/")[0])

    @property
    def writable(self) -> bool:
        """Whether volumes can be written there: web servers are read only."""
        return self.scheme in WRITABLE_SCHEMES

    def with_name(self, name: str) -> Url:
        """The sibling of this name."""
        return self.parent / name


Place: TypeAlias = Path | Url


def is_url(name: str | Place) -> bool:
    """Whether a name is meant as a URL, its slashes damaged or not.

    >>> [is_url(name) for name in ("s3://lab/em.zarr", "volumes/em.zarr", Path("s3://lab/em.zarr"))]
    [True, False, True]
    """
    return isinstance(name, Url) or bool(_URL.match(str(name)))


def place_of(name: str | Place, *, anonymous: bool = False) -> Place:
    """The place that a path or URL names; paths become absolute, for workers run in other folders.

    Args:
      name: a path, or a URL of one of `SCHEMES`.
      anonymous: read a URL without credentials.

    Raises:
      ValueError: the URL is of another kind, names no bucket or key, or holds credentials or a query.
    """
    if isinstance(name, Url):
        return replace(name, anonymous=name.anonymous or anonymous)
    if not is_url(name):
        return Path(name).expanduser().absolute()
    if isinstance(name, Path):
        raise ValueError(f"{name} is a URL that a pathlib.Path has cut a slash from: give it as text, s3://bucket/key.")
    return _parsed(name, anonymous)


def _parsed(text: str, anonymous: bool) -> Url:
    parts = urlsplit(text)
    if "@" in parts.netloc:
        # The text is not repeated: it holds a secret.
        raise ValueError(
            f"the {parts.scheme}:// URL holds credentials: they would be printed, and kept with the output. Set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, and give s3://bucket/key."
        )
    if parts.query or parts.fragment:
        raise ValueError(
            f"{parts.scheme}://{parts.netloc}{parts.path}: a URL with ? or # is not supported: a signed link serves "
            "one object, and a volume is many. Give the plain address of the volume, such as s3://bucket/key."
        )
    if parts.scheme.lower() not in SCHEMES:
        raise ValueError(
            f"{text}: {parts.scheme}:// is no kind of store that tessera reads ({', '.join(SCHEMES)}). Copy the volume "
            "to one of them or to a local folder, for example /data/volume.zarr."
        )
    key = normpath(parts.path).strip("/")
    if not parts.netloc or key in ("", ".") or ".." in parts.path.split("/"):
        raise ValueError(f"{text} names no volume: give bucket and key, for example s3://bucket/volume.zarr.")
    return Url(parts.scheme.lower(), parts.netloc, key, anonymous)
