"""Other programs that show a scene: the link that opens it in neuroglancer, and the command for napari.

Neither runs here: a link holds addresses, which the viewer's page asks this machine for.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tessera.images.previews import LayerKind
from tessera.workflows.scene import Layer, Scene

Address = Callable[[LayerKind], str]
"""Where the server serves a volume."""

_GREY = """#uicontrol invlerp normalized
void main() {
  emitGrayscale(normalized());
}
"""
# Like the pictures of our own page: the surer, the more opaque.
_MEMBRANE = """#uicontrol vec3 colour color(default="#ff7000")
#uicontrol invlerp normalized
void main() {
  emitRGBA(vec4(colour, clamp(normalized(), 0.0, 1.0)));
}
"""


def neuroglancer_link(viewer: str, scene: Scene, address: Address) -> str:
    """A link to a page of neuroglancer that holds a scene.

    Args:
      viewer: the page's address.
      scene: what it is to show.
      address: gives each volume's.

    Source: neuroglancer's state, as JSON in the link's fragment.
    """
    state = json.dumps(neuroglancer_state(scene, address), separators=(",", ":"))
    return f"{viewer.rstrip('/')}/#!{quote(state)}"


def neuroglancer_state(scene: Scene, address: Address) -> dict[str, Any]:
    """The state of a page that shows a scene from its middle: raw below, labels on top."""
    frame = scene.frame
    middle = [
        origin / size + (n - 1) / 2 for origin, size, n in zip(frame.origin_nm, frame.size_nm, scene.shape, strict=True)
    ]
    return {
        "dimensions": _dimensions(frame, "xyz"),
        "position": middle[::-1],
        "crossSectionScale": max(1.0, max(scene.shape[1:]) / 800),
        "layers": [_layer(layer, address(layer.kind)) for layer in reversed(scene.layers)],
        "layout": "xy",
    }


def _dimensions(layer: Layer, order: str) -> dict[str, list[Any]]:
    sizes = dict(zip("zyx", layer.size_nm, strict=True))
    return {axis: [sizes[axis] / 1e9, "m"] for axis in order}


def _layer(layer: Layer, address: str) -> dict[str, Any]:
    own: dict[LayerKind, dict[str, Any]] = {
        "raw": {"type": "image", "shader": _GREY},
        "probability": {"type": "image", "shader": _MEMBRANE, "opacity": 0.5, "blend": "default"},
        "labels": {"type": "segmentation", "selectedAlpha": 0.3, "segments": []},
    }
    return {"name": layer.kind, "source": _source(layer, address), **own[layer.kind]}


def _source(layer: Layer, address: str) -> str | dict[str, Any]:
    url = f"zarr{layer.volume.zarr_format}://{address}"
    if layer.volume.levels[0].path:
        return url
    # A plain array says nothing of its voxels' size.
    return {"url": url, "transform": {"outputDimensions": _dimensions(layer, "".join(layer.volume.axes[-3:]))}}


def napari_command(scene: Scene, address: Address) -> str:
    """A command that opens a scene in napari, by its reader of OME-Zarr; volumes in buckets through the server."""
    places = [(layer.kind, layer.volume.place) for layer in reversed(scene.layers)]
    shown = [str(place) if isinstance(place, Path) else address(kind) for kind, place in places]
    return shlex.join(["napari", "--plugin", "napari-ome-zarr", *shown])
