"""Could an output be written at a place, and is there room for it? Asked without writing anything."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numcodecs  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from tessera.storage.locations import Place, Url
from tessera.storage.objects import child_names, replace_bytes


def check_writable(place: Place) -> None:
    """Make sure that a folder or prefix could be made, or written to where it is there.

    An object store is asked to replace an object that cannot be there: one who may not write is told so, and nothing is
    written for one who may.

    Raises:
      PermissionError: this user may not.
      OSError: what should be a folder is a file, or there is no such bucket.
    """
    if isinstance(place, Url):
        _ask_store(place)
        return
    nearest = _nearest(place)
    if not nearest.is_dir():
        raise NotADirectoryError(f"{place} cannot be made: {nearest} is a file. Give an output in a folder.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{place} cannot be written: this user may not write in {nearest}. Give another output, such as a name "
            "under TESSERA_HOME/volumes, or have its permissions changed."
        )


def _ask_store(place: Url) -> None:
    child_names(place)  # there is such a bucket, and it may be listed
    with suppress(FileExistsError, FileNotFoundError):  # the condition is not met: whoever is told so may write
        replace_bytes(place / ".tessera-may-write", b"", '"0"')


def free_bytes(place: Place) -> int | None:
    """Free space where a folder is or would be; None in an object store, which has no end."""
    return None if isinstance(place, Url) else shutil.disk_usage(_nearest(place)).free


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def stored_share(voxels: NDArray[Any]) -> float:
    """Bytes that voxels take once they are compressed as outputs are, per byte of theirs."""
    return len(numcodecs.Zstd(level=1).encode(np.ascontiguousarray(voxels))) / voxels.nbytes
