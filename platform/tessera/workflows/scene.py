"""What is looked at together: a volume and those it was made from, in one frame of coordinates.

    cells --input--> probability --input--> raw

Each volume's attributes name its input. All lie in the nanometers of their metadata, so that a region of interest or
a coarser level falls where it belongs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2

from tessera.images.previews import LayerKind
from tessera.settings.places import input_path
from tessera.settings.view import ViewSettings
from tessera.storage.locations import Place, Url, place_of
from tessera.storage.volumes import Volume, open_volume

_log = logging.getLogger(__name__)

# The longer side of a picture.
PICTURE_PX = 1024
Size = tuple[float, float, float]
_KINDS: dict[object, LayerKind] = {
    "membrane probability": "probability",
    "labels": "labels",
    "image": "raw",
    "raw": "raw",
}


@dataclass(frozen=True)
class Layer:
    """One volume of a scene.

    Attributes:
      kind: how it is shown, and its name: there is one of a kind.
      volume: its finest level, opened.
    """

    kind: LayerKind
    volume: Volume

    @property
    def size_nm(self) -> Size:
        """Voxel size of the finest level; 1 where nobody says."""
        return self.volume.voxel_size_nm or (1.0, 1.0, 1.0)

    @property
    def origin_nm(self) -> Size:
        """Centre of voxel 0 of the finest level."""
        return self.volume.translation_nm or (0.0, 0.0, 0.0)

    def level(self, number: int) -> Volume:
        """One of its levels, opened."""
        return self.volume if number == 0 else _opened(self.volume.place, number)


@dataclass(frozen=True)
class Scene:
    """A volume and what it was made from.

    Attributes:
      layers: the volume that was asked for first, then its input, and so on.
    """

    layers: tuple[Layer, ...]

    @property
    def frame(self) -> Layer:
        """The layer whose finest voxels count as the scene's coordinates."""
        return self.layers[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the frame, z, y, x."""
        z, y, x = self.frame.volume.shape[-3:]
        return z, y, x

    @property
    def zooms(self) -> range:
        """Zooms at which it can be asked for: a pixel is 2^zoom voxels of the frame, until a section is one picture.

        >>> 1 + ceil(log2(30_000 / PICTURE_PX))
        6
        """
        return range(1 + max(0, ceil(log2(max(self.shape[1:]) / PICTURE_PX))))

    def layer(self, kind: str) -> Layer | None:
        """The layer of a kind."""
        return next((layer for layer in self.layers if layer.kind == kind), None)


@lru_cache(maxsize=64)
def _opened(place: Place, level: int) -> Volume:
    return open_volume(place, level=level)


def find_scene(settings: ViewSettings) -> Scene:
    """Open a volume and what it was made from, as far as that is still there.

    Raises:
      FileNotFoundError, PermissionError, ValueError: the volume itself cannot be opened.
    """
    volume = open_volume(input_path(settings.volume, anonymous=settings.storage.anonymous))
    layers: dict[LayerKind, Layer] = {}
    for one in inputs_of(volume):
        kind = kind_of(one)
        if kind in layers:
            _log.info("%s is left out: there is %s already", one.url, layers[kind].volume.url)
            continue
        layers[kind] = Layer(kind, one)
    return Scene(tuple(layers.values()))


def kind_of(volume: Volume) -> LayerKind:
    """How a volume is shown: as its own attributes say; other tools' are raw, unless of a dtype that only ids have."""
    if "kind" in volume.attributes:
        return _KINDS.get(volume.attributes["kind"], "labels")
    return "labels" if volume.dtype.name in ("uint32", "uint64") else "raw"


def inputs_of(volume: Volume) -> Iterator[Volume]:
    """A volume, what it was made from, and so on, as far as that is still there; each once, should they form a ring."""
    found: Volume | None = volume
    seen: set[str] = set()
    while found is not None and found.url not in seen:
        yield found
        seen.add(found.url)
        found = _input_of(found)


def predicted_from(cells: Volume) -> Volume | None:
    """The probability that cells were cut from, where it says that some of their voxels were never predicted."""
    found = (one for one in inputs_of(cells) if kind_of(one) == "probability")
    probability = next(found, None)
    kept = probability is not None and "validity" in probability.attributes and probability.shape == cells.shape
    return probability if kept else None


def _input_of(volume: Volume) -> Volume | None:
    """What a volume was made from; None where it does not say, or that has been moved since."""
    name = volume.attributes.get("input")
    if not isinstance(name, str):
        return None
    # Of the same store, so reached in the same way.
    anonymous = isinstance(volume.place, Url) and volume.place.anonymous
    try:
        found = open_volume(place_of(name, anonymous=anonymous))
        # A plain array has no size of its own: it was read as if it had its output's.
        return found if found.voxel_size_nm else open_volume(found.place, voxel_size_nm=volume.voxel_size_nm)
    except (OSError, ValueError) as error:
        _log.warning("%s was made from %s, which cannot be shown: %s", volume.url, name, error)
        return None
