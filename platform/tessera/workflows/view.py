"""A volume and what it was made from, in a browser: our own page, a link for neuroglancer, a command for napari.

volume --> scene: its inputs, one frame --> server on this machine --> page, pictures, files for viewers
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from tessera.images.previews import LayerKind
from tessera.settings.view import ViewSettings
from tessera.workflows.scene import Layer, Scene, find_scene
from tessera.workflows.section_views import shown_at
from tessera.workflows.view_server import ViewServer
from tessera.workflows.viewers import napari_command, neuroglancer_link

_log = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@contextmanager
def viewing(settings: ViewSettings) -> Iterator[str]:
    """Serve a volume while the block runs; gives what to tell the user.

    Raises:
      FileNotFoundError, PermissionError, ValueError: the volume cannot be opened.
      OSError: nothing can listen at that address.
    """
    scene = find_scene(settings)
    with _listening(settings, scene) as server:
        links = _links(settings, scene, server)
        server.told |= told_of(scene) | {"links": links}
        thread = Thread(target=server.serve_forever, name="view", daemon=True)
        thread.start()
        try:
            yield _text(server, links)
        finally:
            server.shutdown()
            thread.join()


def _listening(settings: ViewSettings, scene: Scene) -> ViewServer:
    if settings.host not in _LOOPBACK:
        _log.warning("%s: whoever reaches this machine can read these volumes", settings.host)
    try:
        return ViewServer(settings.host, settings.port, scene, settings.viewer_origin)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        hint = f"Try --port {settings.port + 1}, or 0 for a free one." if taken else "Try --host 127.0.0.1."
        raise OSError(f"nothing can listen at {settings.host}:{settings.port} ({error.strerror}). {hint}") from None


def _links(settings: ViewSettings, scene: Scene, server: ViewServer) -> dict[str, str]:
    def address(kind: LayerKind) -> str:
        return f"{server.address}/volumes/{kind}/"

    return {
        "neuroglancer": neuroglancer_link(settings.neuroglancer, scene, address),
        "napari": napari_command(scene, address),
    }


def told_of(scene: Scene) -> dict[str, Any]:
    """What the page needs to know of a scene, as JSON values."""
    shown = {zoom: shown_at(scene, zoom) for zoom in scene.zooms}
    whole = [zoom for zoom, layers in shown.items() if len(layers) == len(scene.layers)]
    return {
        "name": scene.frame.volume.place.name,
        "shape": scene.shape,
        "zooms": [{"zoom": zoom, "layers": layers} for zoom, layers in shown.items()],
        "start": max(whole, default=0),
        "layers": [_facts(layer) for layer in reversed(scene.layers)],
    }


def _facts(layer: Layer) -> dict[str, Any]:
    volume, known = layer.volume, layer.volume.attributes
    return {
        "kind": layer.kind,
        "place": volume.url,
        "shape": volume.shape,
        "dtype": volume.dtype.name,
        "voxel_size_nm": volume.voxel_size_nm,
        "levels": len(volume.levels),
        "made_by": known.get("made_by"),
        "run_id": known.get("run_id"),
        "state": {True: "finished", False: "half-written"}.get(known.get("complete"), "not tessera's"),  # type: ignore[arg-type]
        "invalid_sections": sorted(known.get("invalid_sections", [])),
    }


def _text(server: ViewServer, links: dict[str, str]) -> str:
    lines = [
        f"page          {server.address}/",
        f"neuroglancer  {links['neuroglancer']}",
        f"napari        {links['napari']}",
    ]
    if server.scene.layer("labels"):
        lines.append("              (napari shows labels as an image: right-click the layer, Convert to Labels)")
    return "\n".join(lines)
