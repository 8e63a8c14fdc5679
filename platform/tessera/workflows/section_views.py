"""Pictures of sections of any size: a window of at most one picture, read from the level that has its resolution.

    zoom --> pixel size --> coarsest level that is at least as fine --> window of it --> picture

A section of 30,000 x 30,000 is never read whole: a layer that has no level near the pixel size is not shown at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.previews import encoded_png, fitted, section_picture
from tessera.storage.volumes import Volume
from tessera.workflows.scene import PICTURE_PX, Layer, Scene, Size

# Voxels of one level that a picture may be made from: a level half as fine as wanted is still read.
_MOST_VOXELS = (2 * PICTURE_PX) ** 2
# Several chunks are decoded at once.
_MOST_CHUNK_BYTES = 2**28


class NotShownError(ValueError):
    """A layer has nothing to show there without reading far more than a picture."""


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at: a section, a zoom, and the window's first voxel, all in the frame's finest voxels.

    Attributes:
      z: section.
      zoom: a pixel is 2^zoom voxels wide.
      y: first row.
      x: first column.
    """

    z: int
    zoom: int = 0
    y: int = 0
    x: int = 0

    def box(self, scene: Scene) -> Box:
        """The voxels of the frame that it shows.

        Raises:
          ValueError: it begins outside the scene, or there is no such zoom.
        """
        start, shape = (self.z, self.y, self.x), scene.shape
        if self.zoom not in scene.zooms or not all(0 <= a < n for a, n in zip(start, shape, strict=True)):
            raise ValueError(
                f"z={self.z}, y={self.y}, x={self.x} at zoom {self.zoom} lies outside: sections, rows and columns are "
                f"below {shape}, zooms below {len(scene.zooms)}. Try z=0."
            )
        extent = PICTURE_PX << self.zoom
        return Box(start, (self.z + 1, min(self.y + extent, shape[1]), min(self.x + extent, shape[2])))


def picture_of(scene: Scene, layer: Layer, view: View) -> bytes:
    """A layer's part of a view, as a PNG file with transparency.

    Raises:
      NotShownError: the layer has no level near the view's resolution, or its chunks are too large; says what to do.
      ValueError: the view lies outside the scene.
    """
    box = view.box(scene)
    pixels = (-(-box.shape[1] >> view.zoom), -(-box.shape[2] >> view.zoom))
    pixels = (max(1, pixels[0]), max(1, pixels[1]))
    volume = _level_for(scene, layer, view.zoom)
    wanted = _in_voxels_of(volume, layer, scene.frame, box)
    _check_small(volume, wanted)
    return encoded_png(_painted(layer, volume, wanted, pixels))


def shown_at(scene: Scene, zoom: int) -> list[str]:
    """Kinds of the layers that can be shown at a zoom."""
    return [layer.kind for layer in scene.layers if _is_shown(scene, layer, zoom)]


def _is_shown(scene: Scene, layer: Layer, zoom: int) -> bool:
    volume = _level_for(scene, layer, zoom)
    try:
        _check_small(volume, _in_voxels_of(volume, layer, scene.frame, View(0, zoom).box(scene)))
    except NotShownError:
        return False
    return True


def _level_for(scene: Scene, layer: Layer, zoom: int) -> Volume:
    """The coarsest level whose pixels are no larger than the view's; the finest where all are."""
    pixel = scene.frame.size_nm[1] * 2**zoom * 1.01
    sizes = [level.voxel_size_nm or layer.size_nm for level in layer.volume.levels]
    fine = [number for number, size in enumerate(sizes) if size[1] <= pixel]
    return layer.level(max(fine, key=lambda number: sizes[number][1], default=0))


def _in_voxels_of(volume: Volume, layer: Layer, frame: Layer, box: Box) -> Box:
    """A box of the frame in a level's voxels; it may pass the level's edges.

    Edges are matched, not centres: voxel i ends half a voxel beyond its centre.
    """
    size = volume.voxel_size_nm or layer.size_nm
    origin = volume.translation_nm or (layer.origin_nm if volume is layer.volume else (0.0, 0.0, 0.0))
    start = [_moved(a, axis, frame, size, origin) for axis, a in enumerate(box.start)]
    extents = [max(1, round(n * own / s)) for n, own, s in zip(box.shape, frame.size_nm, size, strict=True)]
    # A thicker or thinner section is the one that holds the frame's centre.
    middle = (box.start[0] * frame.size_nm[0] + frame.origin_nm[0] - origin[0]) / size[0]
    start[0], extents[0] = int(np.floor(middle + 0.5)), 1
    return Box(tuple(start), tuple(a + n for a, n in zip(start, extents, strict=True)))


def _moved(index: int, axis: int, frame: Layer, size: Size, origin: Size) -> int:
    edge = (index - 0.5) * frame.size_nm[axis] + frame.origin_nm[axis]
    return round((edge - origin[axis]) / size[axis] + 0.5)


def _check_small(volume: Volume, box: Box) -> None:
    name, chunk_bytes = volume.url, prod(volume.chunk) * volume.dtype.itemsize
    if box.size > _MOST_VOXELS:
        raise NotShownError(
            f"{name} has no level for this zoom: {box.size / 1e6:.0f} million voxels would be read for one picture. "
            f"Zoom in, or run `tessera pyramid --volume {name}`."
        )
    if chunk_bytes > _MOST_CHUNK_BYTES:
        raise NotShownError(
            f"{name} has chunks of {chunk_bytes / 2**20:.0f} MiB, several of which would be decoded for one picture. "
            "Save it with chunks such as (16, 256, 256)."
        )


def _painted(layer: Layer, volume: Volume, wanted: Box, pixels: tuple[int, int]) -> NDArray[np.uint8]:
    """The part of a box that lies inside a level, on a transparent ground of the box's shape."""
    shape = volume.shape[-3:]
    inside = wanted.clipped(Box.whole(shape))
    picture = np.zeros((*wanted.shape[1:], 4), np.uint8)
    if inside.size:
        lead = len(volume.shape) - 3
        section = volume.read(Box((0,) * lead + inside.start, (1,) * lead + inside.stop)).reshape(inside.shape)[0]
        part = inside.relative_to(wanted.start).slices[1:]
        if inside == wanted:
            return section_picture(layer.kind, fitted(layer.kind, section, pixels))
        picture[part] = section_picture(layer.kind, section)
    return np.asarray(fitted("labels", picture, pixels))
