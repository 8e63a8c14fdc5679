"""NGFF metadata: written and read as OME-Zarr 0.4 or 0.5, always in nanometers.

A voxel size in the wrong unit, or axes in the wrong order, segments without an error and wrongly. What we write passes
ome-zarr-models; what others wrote is turned into z, y, x and nanometers here, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

OmeZarr = Literal["0.4", "0.5"]
"""Versions of the format that are written; 0.4 lies on Zarr v2, 0.5 on Zarr v3."""

AXES = (("z", "y", "x"), ("c", "z", "y", "x"))

_NM = {
    "angstrom": 0.1,
    "picometer": 1e-3,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
    "inch": 2.54e7,
}
# Not NGFF, but written by tools in wide use.
_NM |= {"nm": 1.0, "nanometre": 1.0, "nanometers": 1.0, "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "mm": 1e6}
_NM |= {"micrometre": 1e3, "micrometers": 1e3}
_NO_UNIT = (None, "", "pixel", "px", "voxel")


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of an image: the array's path in the group, and its voxels in nanometers, ordered z, y, x.

    `voxel_size_nm` is None where the size is unknown. `translation_nm` is the centre of voxel 0.
    """

    path: str
    voxel_size_nm: tuple[float, float, float] | None
    translation_nm: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """What NGFF says of one image: its axes, its levels from fine to coarse, and its channels' names, if any.

    `channel_max` is the value that viewers are to show brightest; 255 where there is no channel.
    """

    axes: tuple[str, ...]
    levels: tuple[Level, ...]
    version: str = "0.5"
    name: str | None = None
    channels: tuple[str, ...] = ()
    channel_max: float = 255.0

    @property
    def voxel_size_nm(self) -> tuple[float, float, float] | None:
        """Voxel size of the finest level, z, y, x; None where it is unknown."""
        return self.levels[0].voxel_size_nm


def image_attributes(
    axes: Sequence[str],
    levels: Sequence[Level],
    *,
    name: str | None = None,
    channels: Sequence[str] = (),
    channel_max: float = 255.0,
    ome_zarr: OmeZarr = "0.5",
) -> dict[str, Any]:
    """The attributes of an image group: 0.5 keeps them under `ome`, 0.4 beside each other.

    Args:
      axes: as `ome_attributes` takes them, and so are the others.
      levels: fine to coarse.
      name: the image's name.
      channels: one name per channel.
      channel_max: the value shown brightest.
      ome_zarr: the version.

    Raises:
      ValueError: as `ome_attributes`.
    """
    ome = ome_attributes(axes, levels, name=name, channels=channels, channel_max=channel_max, ome_zarr=ome_zarr)
    return {"ome": ome} if ome_zarr == "0.5" else ome


def ome_attributes(
    axes: Sequence[str],
    levels: Sequence[Level],
    *,
    name: str | None = None,
    channels: Sequence[str] = (),
    channel_max: float = 255.0,
    ome_zarr: OmeZarr = "0.5",
) -> dict[str, Any]:
    """What NGFF wants said of one image, checked by ome-zarr-models.

    Args:
      axes: ("z", "y", "x") or ("c", "z", "y", "x").
      levels: fine to coarse. Where the voxel size is unknown, scales are relative and no unit is written.
      name: the image's name.
      channels: one name per channel: one alone without a c axis.
      channel_max: the value shown brightest: 255 for bytes, 1 for probabilities as floats.
      ome_zarr: the version.

    Raises:
      ValueError: the axes are others, a size is not positive and finite, or there are several channels but no c axis.
    """
    _check_axes(tuple(axes))
    if len(channels) > 1 and axes[0] != "c":
        raise ValueError(f"channels {list(channels)} but axes {''.join(axes)} without c: give axes c, z, y, x.")
    known = all(level.voxel_size_nm is not None for level in levels)
    multiscale: dict[str, Any] = {
        "axes": [_axis(axis, known) for axis in axes],
        "datasets": [_dataset(level, len(axes)) for level in levels],
    }
    if name is not None:
        multiscale["name"] = name
    # Each version keeps its own number in another place.
    ome: dict[str, Any] = {"multiscales": [multiscale]}
    (ome if ome_zarr == "0.5" else multiscale)["version"] = ome_zarr
    if channels:
        ome["omero"] = {"channels": [_channel(label, channel_max) for label in channels]}
    _validate(ome, ome_zarr)
    return ome


def with_image_label(
    attributes: Mapping[str, Any], source: str | None, colours: Mapping[int, Sequence[int]]
) -> dict[str, Any]:
    """Attributes of an image group that say, too, that its voxels are labels, checked by ome-zarr-models.

    Args:
      attributes: as `image_attributes` gives them, of either version.
      source: path of the image that was labelled, relative to the group, or a URL; None where there is none.
      colours: red, green and blue, 0 to 255, of some labels.
    """
    from ome_zarr_models.v04.image_label import ImageLabelAttrs as ImageLabelAttrs04
    from ome_zarr_models.v05.image_label import ImageLabelAttrs as ImageLabelAttrs05

    newer = "ome" in attributes
    listed = [{"label-value": label, "rgba": [*rgb, 255]} for label, rgb in colours.items()]
    label: dict[str, Any] = {"colors": listed} | ({} if source is None else {"source": {"image": source}})
    inner = attributes["ome"] if newer else attributes
    marked = {**inner, "image-label": label if newer else {"version": "0.4", **label}}
    (ImageLabelAttrs05 if newer else ImageLabelAttrs04).model_validate(marked)
    return {**attributes, "ome": marked} if newer else marked


def parse_image(attributes: Mapping[str, Any]) -> ImageMetadata:
    """Read the attributes of an OME-Zarr 0.4 or 0.5 image group; sizes come out in nanometers.

    Args:
      attributes: all attributes of the group; the first multiscale image is read.

    Raises:
      ValueError: this is no NGFF image, its axes are not z, y, x or c, z, y, x, or a unit is not one of length.
    """
    ome = attributes.get("ome", attributes)
    multiscales = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if not multiscales:
        raise ValueError("no `multiscales` in the attributes: this group is no OME-Zarr 0.4 or 0.5 image.")
    image = multiscales[0]
    try:
        axes = tuple(_axis_name(axis) for axis in image["axes"])
        _check_axes(axes)
        units = [axis.get("unit") if isinstance(axis, Mapping) else None for axis in image["axes"]]
        shared = image.get("coordinateTransformations") or []
        levels = tuple(_level(dataset, units[-3:], shared) for dataset in image["datasets"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"broken NGFF `multiscales` ({error!r}): axes, datasets and scales are needed.") from error
    if not levels:
        raise ValueError("NGFF `multiscales` without datasets: it names no array to read.")
    version = str(ome.get("version") or image.get("version") or ("0.5" if "ome" in attributes else "0.4"))
    return ImageMetadata(axes, levels, version, image.get("name"), _channel_names(ome), _channel_max(ome))


def check_voxel_size(voxel_size_nm: Sequence[float]) -> tuple[float, float, float]:
    """Three positive finite sizes in nanometers, ordered z, y, x.

    Raises:
      ValueError: there are not three, or one is not positive and finite.
    """
    sizes = tuple(float(size) for size in voxel_size_nm)
    if len(sizes) != 3 or not all(isfinite(size) and size > 0 for size in sizes):
        raise ValueError(
            f"voxel_size_nm={list(voxel_size_nm)}: three positive sizes are needed, z, y, x in nanometers, for example "
            "[50, 4, 4]; others would make every physical measure wrong."
        )
    return sizes[0], sizes[1], sizes[2]


def _check_axes(axes: tuple[str, ...]) -> None:
    if axes not in AXES:
        raise ValueError(
            f"axes {', '.join(axes) or 'none'}: only z, y, x and c, z, y, x are supported, in this order; others would "
            "be read transposed. Save one time point with these axes."
        )


def _axis(name: str, known: bool) -> dict[str, str]:
    if name == "c":
        return {"name": "c", "type": "channel"}
    return {"name": name, "type": "space"} | ({"unit": "nanometer"} if known else {})


def _dataset(level: Level, ndim: int) -> dict[str, Any]:
    lead = ndim - 3
    scale = check_voxel_size(level.voxel_size_nm or (1.0, 1.0, 1.0))
    transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * lead + list(scale)}]
    if level.translation_nm is not None:
        shift = [0.0] * lead + [float(t) for t in level.translation_nm]
        transforms.append({"type": "translation", "translation": shift})
    return {"path": level.path, "coordinateTransformations": transforms}


def _channel(label: str, most: float) -> dict[str, Any]:
    return {
        "label": label,
        "color": "FFFFFF",
        "family": "linear",
        "active": True,
        "window": {"min": 0.0, "max": float(most), "start": 0.0, "end": float(most)},
    }


def _validate(ome: Mapping[str, Any], ome_zarr: OmeZarr) -> None:
    # Two seconds to import: only those who write metadata pay.
    from ome_zarr_models.common.omero import Omero
    from ome_zarr_models.v04.image import ImageAttrs as ImageAttrs04
    from ome_zarr_models.v05.image import ImageAttrs as ImageAttrs05

    (ImageAttrs05 if ome_zarr == "0.5" else ImageAttrs04).model_validate(ome)
    if "omero" in ome:
        Omero.model_validate(ome["omero"])


def _axis_name(axis: Any) -> str:
    return str(axis["name"] if isinstance(axis, Mapping) else axis)


def _level(dataset: Mapping[str, Any], units: Sequence[str | None], shared: Sequence[Any]) -> Level:
    """One dataset: its own transformations first, then those shared by all levels."""
    scale, shift = [1.0] * 3, [0.0] * 3
    transforms = [*dataset.get("coordinateTransformations", []), *shared]
    for transform in transforms:
        if transform["type"] == "scale":
            factors = [float(f) for f in transform["scale"][-3:]]
            scale = [a * b for a, b in zip(scale, factors, strict=True)]
            shift = [a * b for a, b in zip(shift, factors, strict=True)]
        elif transform["type"] == "translation":
            shift = [a + float(b) for a, b in zip(shift, transform["translation"][-3:], strict=True)]
    if not any(t["type"] == "scale" for t in transforms) or any(unit in _NO_UNIT for unit in units):
        return Level(_path(dataset), None)
    nm = [_nm(unit) for unit in units]
    size = check_voxel_size([_tidy(a * b) for a, b in zip(scale, nm, strict=True)])
    z, y, x = (_tidy(a * b) for a, b in zip(shift, nm, strict=True))
    return Level(_path(dataset), size, (z, y, x) if any((z, y, x)) else None)


def _path(dataset: Mapping[str, Any]) -> str:
    """A dataset's array, which lies inside the group."""
    path = str(dataset["path"])
    if path.startswith("/") or ".." in path.replace("\\", "/").split("/") or not path:
        raise ValueError(
            f"a dataset's path is {path!r}: it leads out of the image, to files that nobody named. Name an array of "
            'the group, such as "0".'
        )
    return path


def _tidy(value: float) -> float:
    """Undo the last digits' noise of a unit conversion: 0.004 um is 4 nm, not 4.000000000000001."""
    return float(f"{value:.12g}")


def _nm(unit: str | None) -> float:
    if unit not in _NM:
        raise ValueError(
            f"unit {unit!r} of an axis is no known length: a guess would make every physical measure wrong. Known: "
            f"{', '.join(sorted(_NM))}."
        )
    return _NM[str(unit)]


def _channel_names(ome: Mapping[str, Any]) -> tuple[str, ...]:
    channels = (ome.get("omero") or {}).get("channels") or []
    return tuple(str(channel.get("label", index)) for index, channel in enumerate(channels))


def _channel_max(ome: Mapping[str, Any]) -> float:
    channels = (ome.get("omero") or {}).get("channels") or [{}]
    most = (channels[0].get("window") or {}).get("max", 255.0)
    return float(most) if isinstance(most, int | float) else 255.0
