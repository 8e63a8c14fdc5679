"""Zarr stores: the one place that turns a path or URL into one, and that limits Zarr's own threads."""

from __future__ import annotations

from pathlib import Path

import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, ObjectStore

from tessera.storage.locations import Place, Url, place_of
from tessera.storage.objects import backing_store, child_names, exists, is_file

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

_METADATA = ("zarr.json", ".zgroup", ".zarray")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def store_for(place: Place | str, *, writable: bool = False) -> Store:
    """The Zarr store at a path or URL; nothing is opened or created.

    Raises:
      ValueError: a URL that names no store, or one to write to on a web server, which is read only.
    """
    where = place_of(place)
    if isinstance(where, Path):
        return LocalStore(where, read_only=not writable)
    if writable and not where.writable:
        raise ValueError(f"{where}: web servers are read only. Write to a local folder, s3:// or gs://.")
    return ObjectStore(backing_store(where), read_only=not writable)


def is_zarr(place: Place) -> bool:
    """Whether a folder or prefix holds the metadata of a Zarr v2 or v3 node."""
    return any(is_file(place / name) for name in _METADATA)


def check_is_zarr(place: Place) -> None:
    """Refuse a place that holds no Zarr node, saying what lies there instead.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: something else is there.
      OSError: the store cannot be reached, or refuses.
    """
    if is_zarr(place):
        return
    if not exists(place):
        kind = "folder" if isinstance(place, Path) else "URL"
        raise FileNotFoundError(f"{place} does not exist: give the {kind} of a Zarr volume, for example volume.zarr.")
    held = describe(place)
    if "TIFF" in held or "slices" in held:
        raise ValueError(f"{place} is {held}, not a Zarr volume: run `tessera ingest` first and give its output.")
    inner = zarr_children(place)
    hint = f"Did you mean {place / inner[0]}?" if inner else "Give the folder that holds zarr.json, .zgroup or .zarray."
    raise ValueError(f"{place} is {held}, not a Zarr volume. {hint}")


def zarr_children(place: Place) -> list[str]:
    """Names of the Zarr nodes directly below a folder or prefix; at most the first 100 entries are looked at."""
    return [name for name in child_names(place)[:100] if is_zarr(place / name)]


def describe(place: Place) -> str:
    """What lies at an existing place, in words for an error message."""
    if isinstance(place, Url) and is_file(place):
        return "one object"
    if isinstance(place, Path) and place.is_file():
        return _describe_file(place)
    names = child_names(place)
    if not names:
        return "an empty folder"
    if is_zarr(place):
        return "a Zarr array or group"
    slices = [name for name in names if Path(name).suffix.lower() in (".tif", ".tiff", ".png")]
    if slices:
        return f"a folder of {len(slices)} slices"
    return f"a folder that holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _describe_file(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] in _TIFF:
        return "a TIFF file"
    return "an HDF5 file (not supported yet: convert it to Zarr)" if head == b"\x89HDF\r\n\x1a\n" else "a file"
