"""Volumes: open what others wrote, and create what we write.

    path or URL --> Zarr node --> OME-Zarr image (one of its levels) or plain array --> Volume

What is opened knows its axes and its voxel size in nanometers, or is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import DTypeLike

from tessera import __version__
from tessera.storage.attributes import checked_json, is_ours, update_attributes, volume_id
from tessera.storage.drafts import ArrayDraft, draft_documents, place_documents
from tessera.storage.layouts import Layout, legal_layout
from tessera.storage.locations import Place, place_of
from tessera.storage.ome import (
    AXES,
    ImageMetadata,
    Level,
    OmeZarr,
    check_voxel_size,
    image_attributes,
    parse_image,
    with_image_label,
)
from tessera.storage.stores import check_is_zarr, describe, store_for, zarr_children
from tessera.storage.voxels import Volume

__all__ = [
    "ImageLabel",
    "Volume",
    "create_volume",
    "is_ours",
    "list_levels",
    "open_volume",
    "update_attributes",
    "volume_id",
]

_INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
_DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")
_Size = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ImageLabel:
    """What NGFF wants said of labels.

    Attributes:
      source: path of the image that was labelled, relative to the labels' group, or a URL; None where there is none.
      colours: red, green and blue, 0 to 255, of some labels.
    """

    source: str | None = None
    colours: Mapping[int, Sequence[int]] = field(default_factory=dict)


# Opening


def open_volume(
    place: Place | str,
    *,
    writable: bool = False,
    level: int | None = None,
    voxel_size_nm: Sequence[float] | None = None,
) -> Volume:
    """Open one level of an OME-Zarr 0.4 or 0.5 image, or a plain Zarr v2 or v3 array.

    A plain array has axes z, y, x, unless its dimension names say c, z, y, x, and no voxel size of its own.

    Args:
      place: folder or URL of the group or array.
      writable: whether `write` is allowed; inputs are opened without it.
      level: number of the image's level, 0 being the finest and the default.
      voxel_size_nm: z, y, x, where the store does not say; where it says, this must agree within 1%.

    Raises:
      FileNotFoundError: there is nothing at `place`.
      PermissionError: the store refuses to let it be read.
      ValueError: `place` is not a Zarr volume, has no such level, says another voxel size, or its axes, dtype or extent
        are not supported.
    """
    where = place_of(place)
    node = _open_node(where, writable)
    size = None if voxel_size_nm is None else check_voxel_size(voxel_size_nm)
    if isinstance(node, zarr.Array):
        volume = _from_array(where, node, writable, level or 0, size)
    else:
        volume = _from_group(where, node, writable, level or 0, size)
    _check_readable(volume)
    return volume


def list_levels(place: Place | str) -> tuple[Level, ...]:
    """The levels of an image, fine to coarse; one without a name or size for a plain array.

    Raises:
      FileNotFoundError, PermissionError, ValueError: as `open_volume`.
    """
    return open_volume(place).levels


def _open_node(place: Place, writable: bool) -> zarr.Array[Any] | zarr.Group:
    store = store_for(place, writable=writable)
    check_is_zarr(place)
    try:
        return zarr.open(store, mode="r+" if writable else "r")
    except PermissionError:
        raise
    except Exception as error:  # broken metadata raises a dozen unrelated types
        raise ValueError(f"{place}: its Zarr metadata cannot be read ({error}). Restore or rewrite them.") from error


def _from_group(place: Place, group: zarr.Group, writable: bool, level: int, size: _Size | None) -> Volume:
    attributes = group.attrs.asdict()
    image = _image(place, attributes)
    if not 0 <= level < len(image.levels):
        raise ValueError(
            f"{place} has no level {level} but {len(image.levels)}: {_listed(image.levels)}. Give one of their numbers."
        )
    path = image.levels[level].path
    array = group.get(path)
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{place}: level {path!r} of its metadata is not there: the copy is incomplete.")
    if array.ndim != len(image.axes):
        raise ValueError(f"{place}: axes {', '.join(image.axes)} but level {path!r} has shape {array.shape}.")
    said = _agreed_size(place, image.levels[level].voxel_size_nm, size)
    return Volume(place, array, image.axes, said, _own_attributes(attributes), writable, image.levels, level)


def _image(place: Place, attributes: Mapping[str, Any]) -> ImageMetadata:
    try:
        return parse_image(attributes)
    except ValueError as error:
        inner = zarr_children(place)
        hint = f" It holds {', '.join(inner[:5])}: did you mean {place / inner[0]}?" if inner else ""
        raise ValueError(f"{place}: {error}{hint}") from error


def _listed(levels: Sequence[Level]) -> str:
    sizes = (level.voxel_size_nm for level in levels)
    return ", ".join(f"{i} ({'size unknown' if size is None else f'{list(size)} nm'})" for i, size in enumerate(sizes))


def _agreed_size(place: Place, stored: _Size | None, given: _Size | None) -> _Size | None:
    """The voxel size that the store says, else the user's.

    Raises:
      ValueError: both say one, and they differ.
    """
    if stored is not None and given is not None and not np.allclose(stored, given, rtol=0.01):
        raise ValueError(
            f"{place} says that its voxels are {list(stored)} nm, voxel_size_nm={list(given)} says otherwise: one of "
            "them would make every physical measure wrong. Leave the option out, or mend the volume's metadata."
        )
    return stored if stored is not None else given


def _from_array(place: Place, array: zarr.Array[Any], writable: bool, level: int, size: _Size | None) -> Volume:
    if level:
        raise ValueError(f"{place} is a plain array, which has no level {level}. Leave the level out.")
    axes = _array_axes(place, array)
    own = _own_attributes(array.attrs.asdict())
    return Volume(place, array, axes, size, own, writable, (Level("", size),))


def _own_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    own = attributes.get("tessera", {})
    return dict(own) if isinstance(own, Mapping) else {}


def _array_axes(place: Place, array: zarr.Array[Any]) -> tuple[str, ...]:
    """Axes by dimension names where they are given (Zarr v3, or xarray's attribute in v2), else z, y, x by count."""
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    named = tuple(str(name).lower() for name in names or ())
    if named in AXES:
        return named
    if array.ndim != 3 or set(named) & set("tczyx"):
        raise ValueError(
            f"{place}: shape {array.shape} with dimension names {list(named) or 'absent'}: a volume has axes z, y, x, "
            "or c, z, y, x by name; others would be read transposed. Save one channel as z, y, x."
        )
    return AXES[0]


def _check_readable(volume: Volume) -> None:
    if volume.dtype.name not in _DTYPES:
        raise ValueError(f"{volume.url}: dtype {volume.dtype} is not supported. Convert it: {', '.join(_DTYPES)}.")
    if 0 in volume.shape:
        raise ValueError(f"{volume.url}: shape {volume.shape} holds no voxel: nothing to read. Write it again.")


def open_array(volume: Volume, level: Level, *, writable: bool = False) -> Volume:
    """Open an array of an image that its list of levels need not name yet, with what `level` says of it.

    Raises:
      ValueError: it is not there, or cannot be read.
    """
    try:
        array = zarr.open_array(
            store_for(volume.place, writable=writable), path=level.path, mode="r+" if writable else "r"
        )
    except Exception as error:  # broken metadata raises a dozen unrelated types
        raise ValueError(f"{volume.url}: level {level.path!r} cannot be read ({error}). Make it again.") from error
    levels = (*volume.levels[:1], level)
    return replace(volume, array=array, voxel_size_nm=level.voxel_size_nm, writable=writable, levels=levels, level=1)


# Creating


def create_volume(
    place: Place | str,
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
    ome_zarr: OmeZarr = "0.5",
    labels: ImageLabel | None = None,
) -> Volume:
    """Create an OME-Zarr image with one level "0", filled with zeros, and open it for writing.

    The volume appears in one step: it is whole or absent. Chunks are compressed with zstd at level 1; all-zero shards
    are not stored.

    Args:
      place: a folder or prefix that is absent or empty.
      shape: (z, y, x) or (c, z, y, x), voxels.
      dtype: bool, an integer or a float.
      voxel_size_nm: z, y, x; None writes no unit, and reads back as None.
      chunk: see `legal_layout`.
      shard: see `legal_layout`.
      attributes: JSON values for the `tessera` attribute; `version` and `id` are added.
      name: the image's name; the folder's by default.
      channels: names along c.
      translation_nm: where voxel 0 lies, z, y, x, in the coordinates of the volume it was cut from; None is the origin.
      ome_zarr: 0.5 is sharded; 0.4 (Zarr v2, for older tools) is not: there a chunk is what one write owns.
      exist_ok: open a volume of ours that is already there, if shape, dtype, layout and voxel size agree.
      labels: what NGFF is told of them, where the voxels are labels.

    Raises:
      FileExistsError: something else is at `path`; says what, and how to proceed.
      ValueError: an argument is not legal; says a value that is.
    """
    where, extents, kind = place_of(place), tuple(int(n) for n in shape), np.dtype(dtype)
    _check_dtype(where, kind)
    layout = legal_layout(extents, kind.itemsize, chunk, shard, sharded=ome_zarr == "0.5")
    size = None if voxel_size_nm is None else check_voxel_size(voxel_size_nm)
    own = {"version": __version__, "id": os.urandom(8).hex(), **checked_json(attributes or {})}
    axes = AXES[len(extents) - 3]
    shift = None if translation_nm is None else (translation_nm[0], translation_nm[1], translation_nm[2])
    image = image_attributes(
        axes,
        [Level("0", size, shift)],
        name=name or where.name,
        channels=channels,
        channel_max=_greatest(kind),
        ome_zarr=ome_zarr,
    )
    if labels is not None:
        image = with_image_label(image, labels.source, labels.colours)
    if is_ours(where) or (isinstance(where, Path) and where.exists() and not _is_empty_folder(where)):
        return _checked_origin(
            _reopen(where, extents, kind, layout, size, 3 if ome_zarr == "0.5" else 2, exist_ok), own
        )
    draft = ArrayDraft(extents, kind, layout)
    place_documents(where, draft_documents({"0": draft}, {**image, "tessera": own}, ome_zarr))
    return open_volume(where, writable=True)


def _check_dtype(place: Place, dtype: np.dtype[Any]) -> None:
    if dtype.name not in _DTYPES:
        raise ValueError(f"{place}: dtype {dtype} is not supported. Use one of {', '.join(_DTYPES)}.")


def _greatest(dtype: np.dtype[Any]) -> float:
    """What viewers are to show brightest: an integer's largest value, and 1 of floats."""
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _reopen(
    place: Place,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    layout: Layout,
    size: _Size | None,
    zarr_format: int,
    exist_ok: bool,
) -> Volume:
    """The volume that is already there, if it is ours, wanted and the same."""
    if not is_ours(place):
        raise FileExistsError(
            f"{place} is {describe(place)} that tessera did not make: it would be overwritten. Give another output, "
            "or remove it yourself."
        )
    if not exist_ok:
        raise FileExistsError(
            f"{place} is a volume that tessera made: it would be overwritten. Give another output, rerun the same job "
            "to resume it, or say `--overwrite true`."
        )
    volume = open_volume(place, writable=True)
    wanted = {"shape": shape, "dtype": dtype, "chunk": layout.chunk, "shard": layout.shard, "voxel_size_nm": size}
    wanted["zarr_format"] = zarr_format
    differing = [f"{k} {getattr(volume, k)}, not {v}" for k, v in wanted.items() if getattr(volume, k) != v]
    if differing:
        raise FileExistsError(
            f"{place} is a volume with {'; '.join(differing)}: two jobs' results would be mixed. Give another output, "
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
