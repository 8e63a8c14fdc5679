"""Volumes: open what others wrote, create what we write, and write only whole shards.

A `Volume` is what every workflow reads and writes. It knows its axes and its voxel size in nanometers, and refuses a
write that could race with another task's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import ZstdCodec

from tessera import __version__
from tessera.geometry.boxes import Box
from tessera.storage.files import write_atomically
from tessera.storage.layouts import Layout, legal_layout
from tessera.storage.ome import AXES, Level, check_voxel_size, ome_attributes, parse_image
from tessera.storage.stores import check_is_zarr, describe, is_zarr, local_path, store_for

_INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
_DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")


@dataclass(frozen=True)
class Volume:
    """One array of voxels with its axes, voxel size and `tessera` attributes; pickles, and reopens where it lands.

    `url` is the path it was opened from. `axes` is ("z", "y", "x") or ("c", "z", "y", "x"). `voxel_size_nm` is z, y, x,
    or None where the store does not say. `attributes` is a copy of the `tessera` attribute as it was on opening.
    """

    url: str
    array: zarr.Array[Any] = field(repr=False, compare=False)
    axes: tuple[str, ...]
    voxel_size_nm: tuple[float, float, float] | None
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    writable: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent on each of `axes`, voxels."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Voxel type in native byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def chunk(self) -> tuple[int, ...]:
        """What one read fetches, voxels."""
        return tuple(int(n) for n in self.array.chunks)

    @property
    def shard(self) -> tuple[int, ...]:
        """What one write owns, voxels: the shard, or the chunk where the array is not sharded."""
        return tuple(int(n) for n in self.array.shards or self.array.chunks)

    @property
    def layout(self) -> Layout:
        """Chunk and shard together."""
        return Layout(self.chunk, self.shard)

    @property
    def invalid_sections(self) -> frozenset[int]:
        """Sections (z) that are missing or blank; read from the `invalid_sections` attribute."""
        return frozenset(int(z) for z in self.attributes.get("invalid_sections", ()))

    def read(self, box: Box) -> NDArray[Any]:
        """A copy of the voxels in a box that lies inside the volume.

        Args:
          box: one interval per axis of the volume.

        Returns:
          `dtype`, of the box's shape; zeros where nothing was ever written.

        Raises:
          ValueError: the box has other axes or leaves the volume.
        """
        self._check_inside(box)
        return np.array(self.array[box.slices], dtype=self.dtype)

    def section(self, z: int) -> NDArray[Any]:
        """A copy of one section of a z, y, x volume: `dtype`, (y, x)."""
        section: NDArray[Any] = self.read(Box((z, 0, 0), (z + 1, *self.shape[1:])))[0]
        return section

    def write(self, box: Box, data: NDArray[Any]) -> None:
        """Write whole shards.

        Args:
          box: starts at multiples of the shard; stops at multiples too, or at the volume's far edge.
          data: `dtype`, of the box's shape.

        Raises:
          ValueError: the box is not whole shards, the data do not fit it, or the volume was opened for reading.
        """
        self._check_inside(box)
        if not self.writable:
            raise ValueError(f"{self.url} was opened for reading: use open_volume(path, writable=True) to write to it.")
        if not self.layout.is_aligned(box, self.shape):
            raise ValueError(
                f"box {box} is not whole shards of {self.url} (shard {self.shard}, shape {self.shape}): a partial "
                "shard write reads, changes and rewrites the shard without a lock, and loses another task's data. "
                f"Write {self._nearest(box)} instead."
            )
        if data.shape != box.shape or data.dtype != self.dtype:
            raise ValueError(
                f"data of shape {data.shape} and dtype {data.dtype} for box {box} of {self.url}: they would be "
                f"broadcast or cast silently. Give shape {box.shape} and dtype {self.dtype}."
            )
        self.array[box.slices] = data

    def _nearest(self, box: Box) -> Box:
        """The legal box around this one; the shard at its start where it is empty."""
        wanted = box if box.size else Box(box.start, tuple(a + 1 for a in box.start)).clipped(Box.whole(self.shape))
        return self.layout.aligned(wanted, self.shape)

    def _check_inside(self, box: Box) -> None:
        if box.ndim != len(self.shape) or not Box.whole(self.shape).contains(box):
            raise ValueError(
                f"box {box} for {self.url} with axes {', '.join(self.axes)} and shape {self.shape}: it needs one "
                f"interval per axis inside {Box.whole(self.shape)}. Clip it, and mirror what lies outside."
            )


# Opening


def open_volume(path: Path | str, *, writable: bool = False) -> Volume:
    """Open an OME-Zarr 0.4 or 0.5 image (its finest level), or a plain Zarr v2 or v3 array.

    A plain array has axes z, y, x, unless its dimension names say c, z, y, x, and no voxel size.

    Args:
      path: local folder of the group or array.
      writable: whether `write` is allowed; inputs are opened without it.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: `path` is a URL, is not a Zarr volume, or its axes, dtype or extent are not supported.
    """
    folder = local_path(path)
    check_is_zarr(folder)
    try:
        node = zarr.open(store_for(folder, writable=writable), mode="r+" if writable else "r")
    except Exception as error:  # broken metadata raises a dozen unrelated types
        raise ValueError(f"{folder}: its Zarr metadata cannot be read ({error}). Restore or rewrite them.") from error
    if isinstance(node, zarr.Array):
        volume = _from_array(folder, node, writable)
    else:
        volume = _from_group(folder, node, writable)
    _check_readable(volume)
    return volume


def _from_group(folder: Path, group: zarr.Group, writable: bool) -> Volume:
    attributes = group.attrs.asdict()
    try:
        image = parse_image(attributes)
    except ValueError as error:
        inner = sorted(child.name for child in folder.iterdir() if is_zarr(child))
        hint = f" It holds {', '.join(inner[:5])}: did you mean {folder / inner[0]}?" if inner else ""
        raise ValueError(f"{folder}: {error}{hint}") from error
    level = image.levels[0]
    array = group.get(level.path)
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{folder}: level {level.path!r} of its metadata is not there: the copy is incomplete.")
    if array.ndim != len(image.axes):
        raise ValueError(f"{folder}: axes {', '.join(image.axes)} but level {level.path!r} has shape {array.shape}.")
    return Volume(str(folder), array, image.axes, image.voxel_size_nm, _own_attributes(attributes), writable)


def _from_array(folder: Path, array: zarr.Array[Any], writable: bool) -> Volume:
    axes = _array_axes(folder, array)
    return Volume(str(folder), array, axes, None, _own_attributes(array.attrs.asdict()), writable)


def _own_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    own = attributes.get("tessera", {})
    return dict(own) if isinstance(own, Mapping) else {}


def _array_axes(folder: Path, array: zarr.Array[Any]) -> tuple[str, ...]:
    """Axes by dimension names where they are given (Zarr v3, or xarray's attribute in v2), else z, y, x by count."""
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    named = tuple(str(name).lower() for name in names or ())
    if named in AXES:
        return named
    if array.ndim != 3 or set(named) & set("tczyx"):
        raise ValueError(
            f"{folder}: shape {array.shape} with dimension names {list(named) or 'absent'}: a volume has axes z, y, x, "
            "or c, z, y, x by name; others would be read transposed. Save one channel as z, y, x."
        )
    return AXES[0]


def _check_readable(volume: Volume) -> None:
    if volume.dtype.name not in _DTYPES:
        raise ValueError(f"{volume.url}: dtype {volume.dtype} is not supported. Convert it: {', '.join(_DTYPES)}.")
    if 0 in volume.shape:
        raise ValueError(f"{volume.url}: shape {volume.shape} holds no voxel: nothing to read. Write it again.")


# Creating


def create_volume(
    path: Path | str,
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    voxel_size_nm: Sequence[float] | None,
    chunk: Sequence[int] | None = None,
    shard: Sequence[int] | None = None,
    attributes: Mapping[str, Any] | None = None,
    name: str | None = None,
    channels: Sequence[str] = (),
    translation_nm: Sequence[float] | None = None,
    exist_ok: bool = False,
) -> Volume:
    """Create an OME-Zarr 0.5 image with one sharded level "0", filled with zeros, and open it for writing.

    The volume appears in one rename: it is whole or absent. Shards are compressed with zstd at level 1; all-zero shards
    are not stored.

    Args:
      path: a local folder that is absent or empty.
      shape: (z, y, x) or (c, z, y, x), voxels.
      dtype: bool, an integer or a float.
      voxel_size_nm: z, y, x; None writes no unit, and reads back as None.
      chunk: see `legal_layout`.
      shard: see `legal_layout`.
      attributes: JSON values for the `tessera` attribute; `version` and `id` are added.
      name: the image's name; the folder's by default.
      channels: names along c.
      translation_nm: where voxel 0 lies, z, y, x, in the coordinates of the volume it was cut from; None is the origin.
      exist_ok: open a volume of ours that is already there, if shape, dtype, layout and voxel size agree.

    Raises:
      FileExistsError: something else is at `path`; says what, and how to proceed.
      ValueError: an argument is not legal; says a value that is.
    """
    folder, extents, kind = local_path(path), tuple(int(n) for n in shape), np.dtype(dtype)
    _check_dtype(folder, kind)
    layout = legal_layout(extents, kind.itemsize, chunk, shard)
    size = None if voxel_size_nm is None else check_voxel_size(voxel_size_nm)
    own = {"version": __version__, "id": os.urandom(8).hex(), **_checked_json(attributes or {})}
    axes = AXES[len(extents) - 3]
    place = None if translation_nm is None else (translation_nm[0], translation_nm[1], translation_nm[2])
    ome = ome_attributes(axes, [Level("0", size, place)], name=name or folder.name, channels=channels)
    if folder.exists() and not _is_empty_folder(folder):
        return _checked_origin(_reopen(folder, extents, kind, layout, size, exist_ok), own)
    draft = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.tmp")
    try:
        _write_draft(draft, extents, kind, layout, {"ome": ome, "tessera": own})
        draft.rename(folder)
    except OSError as error:
        if folder.exists() and not _is_empty_folder(folder):
            raise FileExistsError(f"{folder} was created by another process: run one job per output.") from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return open_volume(folder, writable=True)


def _check_dtype(folder: Path, dtype: np.dtype[Any]) -> None:
    if dtype.name not in _DTYPES:
        raise ValueError(f"{folder}: dtype {dtype} is not supported. Use one of {', '.join(_DTYPES)}.")


def _write_draft(
    draft: Path, shape: tuple[int, ...], dtype: np.dtype[Any], layout: Layout, attributes: dict[str, Any]
) -> None:
    draft.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.create_group(store_for(draft, writable=True), attributes=attributes)
    group.create_array(
        "0",
        shape=shape,
        dtype=dtype,
        chunks=layout.chunk,
        shards=layout.shard,
        compressors=ZstdCodec(level=1),
        fill_value=0,
        dimension_names=AXES[len(shape) - 3],
    )


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _reopen(
    folder: Path,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    layout: Layout,
    size: tuple[float, float, float] | None,
    exist_ok: bool,
) -> Volume:
    """The volume that is already there, if it is ours, wanted and the same."""
    if not (folder / "zarr.json").is_file() or not is_ours(folder):
        raise FileExistsError(
            f"{folder} is {describe(folder)} that tessera did not make: it would be overwritten. Give another output, "
            "or remove it yourself."
        )
    if not exist_ok:
        raise FileExistsError(
            f"{folder} is a volume that tessera made: it would be overwritten. Give another output, rerun the same job "
            "to resume it, or say `--overwrite true`."
        )
    volume = open_volume(folder, writable=True)
    wanted = {"shape": shape, "dtype": dtype, "chunk": layout.chunk, "shard": layout.shard, "voxel_size_nm": size}
    differing = [f"{k} {getattr(volume, k)}, not {v}" for k, v in wanted.items() if getattr(volume, k) != v]
    if differing:
        raise FileExistsError(
            f"{folder} is a volume with {'; '.join(differing)}: two jobs' results would be mixed. Give another output, "
            "or say `--overwrite true`."
        )
    return volume


def _checked_origin(volume: Volume, wanted: Mapping[str, Any]) -> Volume:
    """Refuse a volume that something else made: its attributes would go on telling what its voxels no longer are."""
    for name in ("made_by", "kind"):
        found = volume.attributes.get(name)
        if found != wanted.get(name):
            raise FileExistsError(
                f"{volume.url} is a volume with {name} {found}, not {wanted.get(name)}: it would be overwritten. Give "
                "another output, or say `--overwrite true`."
            )
    return volume


# Attributes


def is_ours(path: Path) -> bool:
    """Whether a folder is a volume that tessera made: its `zarr.json` has a `tessera` attribute with our mark."""
    return volume_id(path) is not None


def volume_id(path: Path) -> str | None:
    """The random id that `create_volume` gave a volume; None where there is no volume of ours."""
    try:
        return str(json.loads((path / "zarr.json").read_text())["attributes"]["tessera"]["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def update_attributes(path: Path | str, **values: Any) -> dict[str, Any]:
    """Set entries of a volume's `tessera` attribute, keeping the others; the file is replaced in one step.

    Only the driver calls this: two writers at once would lose one's entries.

    Args:
      path: a volume that `create_volume` made.
      values: JSON values by name.

    Returns:
      All entries as they are now.

    Raises:
      ValueError: the volume is not ours, or a value is not JSON.
    """
    folder = local_path(path)
    if not is_ours(folder):
        raise ValueError(f"{folder} is no volume of tessera's: its attributes are left alone.")
    metadata = json.loads((folder / "zarr.json").read_text())
    own: dict[str, Any] = metadata["attributes"]["tessera"]
    own.update(_checked_json(values))
    write_atomically(folder / "zarr.json", json.dumps(metadata, indent=2).encode())
    return own


def _checked_json(values: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"attribute {key}={value!r} is not JSON ({error}): it could not be read back. Use plain numbers, "
                "strings, lists and dictionaries."
            ) from error
    return dict(values)
