"""Bytes of a volume's files, for a server: parts of a file wherever it lies, and nothing outside the volume.

A path that a stranger sent is a key below the volume's root. It is refused unless it names a plain file there, after
every link was followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import obstore

from tessera.storage.locations import Place, Url
from tessera.storage.objects import backing_store, stamp, told

_PIECE_BYTES = 2**20
# Zarr v2's metadata; any other hidden name is a draft, or not the volume's.
_HIDDEN = (".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class StoredFile:
    """A file or object that is open for reading.

    Attributes:
      size: bytes.
      source: the open file, or the object's address.
    """

    size: int
    source: BinaryIO | Url

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, in pieces of at most 1 MiB.

        Raises:
          OSError: the store fails, or the file ends before `stop`.
        """
        for first in range(start, stop, _PIECE_BYTES):
            wanted = min(_PIECE_BYTES, stop - first)
            piece = self._read(first, wanted)
            if len(piece) < wanted:
                raise OSError(f"{self.source} ends before byte {stop}: it was cut while it was read.")
            yield piece

    def _read(self, start: int, count: int) -> bytes:
        if isinstance(self.source, Url):
            with told(self.source):
                store = backing_store(self.source.parent)
                return bytes(obstore.get_range(store, self.source.name, start=start, length=count))
        self.source.seek(start)
        return self.source.read(count)


@contextmanager
def opened(place: Place) -> Iterator[StoredFile]:
    """Open a file to read parts of it; who replaces it meanwhile does not change what is read.

    Raises:
      FileNotFoundError: it is not there.
      OSError: it cannot be read.
    """
    if isinstance(place, Path):
        with place.open("rb") as file:
            yield StoredFile(os.fstat(file.fileno()).st_size, file)
        return
    found = stamp(place)
    if found is None:
        raise FileNotFoundError(f"{place} is not there.")
    yield StoredFile(int(found[0] or 0), place)


def file_below(root: Place, key: str) -> Place | None:
    """The file that a key names below a volume's root; None if there is none, or it lies outside.

    Args:
      root: the volume's folder or prefix.
      key: names joined by "/", decoded.
    """
    names = key.split("/")
    if not all(_is_plain(name) for name in names):
        return None
    if isinstance(root, Url):
        return root / key
    try:
        found = root.joinpath(*names).resolve(strict=True)
        inside = found.is_relative_to(root.resolve(strict=True)) and found.is_file()
    except (OSError, ValueError, RuntimeError):  # not there, not a legal name, or links in a circle
        return None
    return found if inside else None


def _is_plain(name: str) -> bool:
    if not name or name.startswith("."):
        return name in _HIDDEN
    return not set(name) & set("\\:\0") and name.isprintable()
