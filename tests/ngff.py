"""Volumes as other tools see them: opened by zarr alone, and found right by ome-zarr-models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from ome_zarr_models.v04.image import Image as Image04
from ome_zarr_models.v04.image_label import ImageLabelAttrs as ImageLabelAttrs04
from ome_zarr_models.v05.image import Image as Image05
from ome_zarr_models.v05.image_label import ImageLabelAttrs as ImageLabelAttrs05
from pydantic_zarr.v2 import ArraySpec


@dataclass(frozen=True)
class SeenLevel:
    """One level: its name, extents, and the size and first centre of its voxels, z, y, x, in the image's unit."""

    path: str
    shape: tuple[int, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]

    @property
    def first_edge(self) -> tuple[float, ...]:
        """Where voxel 0 begins: half a voxel before its centre."""
        return tuple(t - s / 2 for t, s in zip(self.translation, self.scale, strict=True))


def validated_levels(path: Path | str) -> list[SeenLevel]:
    """An image's levels, after ome-zarr-models found its arrays and metadata right; they are in nanometers."""
    group = zarr.open_group(path, mode="r")
    multiscale = _multiscale(group)
    assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [(a, "space", "nanometer") for a in "zyx"]
    return [_seen(group, dataset) for dataset in multiscale.datasets]


def _multiscale(group: zarr.Group) -> Any:
    if group.metadata.zarr_format == 3:
        return Image05.from_zarr(group).ome_attributes.multiscales[0]
    # Its annotations name a class that this pydantic looks for elsewhere.
    Image04.model_rebuild(_types_namespace={"ArraySpec": ArraySpec})
    return Image04.from_zarr(group).attributes.multiscales[0]


def _seen(group: zarr.Group, dataset: Any) -> SeenLevel:
    array = group[dataset.path]
    assert isinstance(array, zarr.Array)
    scale, *shift = dataset.coordinateTransformations
    moved = tuple(shift[0].translation) if shift else (0.0,) * array.ndim
    return SeenLevel(dataset.path, tuple(array.shape), tuple(scale.scale), moved)


def image_label_of(path: Path | str) -> Any:
    """What an image says of itself as labels, after ome-zarr-models found it right."""
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    if "ome" in attributes:
        return ImageLabelAttrs05.model_validate(attributes["ome"]).image_label
    return ImageLabelAttrs04.model_validate(attributes).image_label
