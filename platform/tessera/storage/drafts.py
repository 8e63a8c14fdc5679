"""A new volume's metadata, made in memory and put in place as one step, so that a volume is whole or absent.

In a folder that step is a rename. An object store has none: the arrays' documents go first, each only where none is,
and the group's own document, which makes a volume of them, goes last. Whoever creates that one owns the volume.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from tessera.storage.layouts import Layout
from tessera.storage.locations import Place, Url
from tessera.storage.objects import create_bytes, is_file, keys_below, read_bytes, write_new
from tessera.storage.ome import AXES, OmeZarr

ROOTS = ("zarr.json", ".zattrs")


@dataclass(frozen=True, slots=True)
class ArrayDraft:
    """One array to be made: z, y, x or c, z, y, x. Where it is not to be sharded, its shard is its chunk."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    layout: Layout


def draft_documents(
    arrays: Mapping[str, ArrayDraft], attributes: Mapping[str, Any], ome_zarr: OmeZarr
) -> dict[str, bytes]:
    """The metadata files of a group with these arrays, by key; compressed with zstd at level 1, filled with zeros."""
    kept: dict[str, Buffer] = {}
    format_: Literal[2, 3] = 3 if ome_zarr == "0.5" else 2
    group = zarr.create_group(MemoryStore(kept), zarr_format=format_, attributes=dict(attributes))
    for path, array in arrays.items():
        group.create_array(path, shape=array.shape, dtype=array.dtype, fill_value=0, **_encoding(array, ome_zarr))
    return {key: value.to_bytes() for key, value in kept.items()}


def _encoding(array: ArrayDraft, ome_zarr: OmeZarr) -> dict[str, Any]:
    if ome_zarr == "0.5":
        names = AXES[len(array.shape) - 3]
        layout = {"chunks": array.layout.chunk, "shards": array.layout.shard}
        return {**layout, "compressors": ZstdCodec(level=1), "dimension_names": names}
    # OME-Zarr 0.4 wants chunks in nested folders.
    keys = {"name": "v2", "separator": "/"}
    return {"chunks": array.layout.chunk, "compressors": numcodecs.Zstd(level=1), "chunk_key_encoding": keys}


def place_documents(place: Place, documents: Mapping[str, bytes]) -> None:
    """Make a group of its documents, where nothing is; it appears whole.

    Raises:
      FileExistsError: something is there, or another process was quicker.
      OSError: the disk is full, or the store refuses; nothing that passes for a volume is left.
    """
    if isinstance(place, Path):
        _rename_into(place, documents)
        return
    foreign = [key for key in keys_below(place, at_most=len(documents) + 1) if key not in documents]
    if foreign:
        raise FileExistsError(
            f"{place} holds {', '.join(foreign[:5])} but no volume of tessera's: new voxels would be mixed with them. "
            "Give another output, or remove it yourself."
        )
    for key in sorted(documents, key=lambda key: key in ROOTS):
        _create_same(place, key, documents[key])


def add_array(place: Place, path: str, array: ArrayDraft, ome_zarr: OmeZarr) -> None:
    """Make an array in a group that is there; one that is there and the same stays.

    Raises:
      FileExistsError: another one is there.
    """
    documents = draft_documents({path: array}, {}, ome_zarr)
    for key in (key for key in documents if key.startswith(f"{path}/")):
        if isinstance(place, Url):
            _create_same(place, key, documents[key])
        elif not is_file(place / key):
            write_new(place / key, documents[key])
        elif read_bytes(place / key) != documents[key]:
            raise FileExistsError(f"{place / key} is another array: its voxels would be lost. Say `--overwrite true`.")


def _create_same(place: Url, key: str, data: bytes) -> None:
    """Create a document; one that is there already was left by a killed creation, if it says the same."""
    try:
        create_bytes(place / key, data)
    except FileExistsError:
        if key in ROOTS or read_bytes(place / key) != data:
            raise FileExistsError(f"{place} was created by another process: run one job per output.") from None


def _rename_into(folder: Path, documents: Mapping[str, bytes]) -> None:
    draft = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.tmp")
    try:
        for key, data in documents.items():
            (draft / key).parent.mkdir(parents=True, exist_ok=True)
            (draft / key).write_bytes(data)
        draft.rename(folder)
    except OSError as error:
        if folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(f"{folder} was created by another process: run one job per output.") from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
