"""Where volumes live: the one place that turns a path into a Zarr store, and that limits Zarr's own threads.

Local folders only for now. Object stores will be added in `store_for` and nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path

import zarr
from zarr.storage import LocalStore

# Zarr starts up to min(32, cores + 4) decoding threads and keeps 10 requests open in every process. A job runs one
# process per core or GPU, each with reader and writer threads of its own, so those defaults oversubscribe the machine.
# They are set on import, before Zarr starts its event loop: later changes of max_workers have no effect.
_ZARR_THREADS = 4
_ZARR_CONCURRENCY = 8
# A chunk of zeros is not stored, and an all-zero shard is no file at all: absent reads as zeros.
zarr.config.set(
    {
        "threading.max_workers": _ZARR_THREADS,
        "async.concurrency": _ZARR_CONCURRENCY,
        "array.write_empty_chunks": False,
    }
)

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/")
_METADATA = ("zarr.json", ".zgroup", ".zarray")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def store_for(path: Path | str, *, writable: bool = False) -> LocalStore:
    """The Zarr store at a path; nothing is opened or created.

    Raises:
      ValueError: `path` is the URL of an object store or web server.
    """
    return LocalStore(local_path(path), read_only=not writable)


def local_path(path: Path | str) -> Path:
    """An absolute local path; workers run in other folders than the driver.

    Raises:
      ValueError: `path` is the URL of an object store or web server.
    """
    scheme = _URL.match(str(path))
    if scheme:
        raise ValueError(
            f"{path}: object stores and URLs ({scheme[1]}://) are not supported yet. Copy the volume to a local or "
            "mounted folder and give its path, for example /data/volume.zarr."
        )
    return Path(path).expanduser().absolute()


def is_zarr(path: Path) -> bool:
    """Whether a folder holds the metadata of a Zarr v2 or v3 node."""
    return any((path / name).is_file() for name in _METADATA)


def check_is_zarr(path: Path) -> None:
    """Refuse a path that holds no Zarr node, saying what lies there instead.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: something else is there.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the folder of a Zarr volume, for example volume.zarr.")
    if is_zarr(path):
        return
    held = describe(path)
    if "TIFF" in held or "slices" in held:
        raise ValueError(f"{path} is {held}, not a Zarr volume: run `tessera ingest` first and give its output.")
    inner = [child.name for child in sorted(path.iterdir()) if is_zarr(child)] if path.is_dir() else []
    hint = f"Did you mean {path / inner[0]}?" if inner else "Give the folder that holds zarr.json, .zgroup or .zarray."
    raise ValueError(f"{path} is {held}, not a Zarr volume. {hint}")


def describe(path: Path) -> str:
    """What lies at an existing path, in words for an error message."""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(8)
        if head[:4] in _TIFF:
            return "a TIFF file"
        return "an HDF5 file (not supported yet: convert it to Zarr)" if head == b"\x89HDF\r\n\x1a\n" else "a file"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "an empty folder"
    if is_zarr(path):
        return "a Zarr array or group"
    slices = [name for name in names if Path(name).suffix.lower() in (".tif", ".tiff", ".png")]
    if slices:
        return f"a folder of {len(slices)} slices"
    return f"a folder that holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
