"""The worst faces of an audit for the eye: raw and probability around the spot where each stands out most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.images.colours import shown_grey
from tessera.images.overlay import painted
from tessera.images.quantise import quantise
from tessera.metrics.seam_verdict import JudgedFace
from tessera.metrics.seams import REACH, worst_spot
from tessera.storage.volumes import Volume
from tessera.tracking.pictures import contact_sheet
from tessera.workflows.panels import raw_behind

_SHOWN, _EXTENT_PX, _TICK_PX = 3, 96, 8
_MARK = (255, 48, 0)


def picture_of_faces(volume: Volume, grid: BlockGrid, faces: Sequence[JudgedFace]) -> NDArray[np.uint8] | None:
    """Rows of raw, probability and differences, ticks at both ends of the face; None where there is no face to show.

    Args:
      volume: the probability volume.
      grid: its blocks.
      faces: worst first; the first few within sections are shown.

    Returns:
      uint8, (y, x, 3).
    """
    rows, titles = [], []
    shown = [(face, grid.box(face.block)) for face in faces if face.block is not None]
    for face, block in shown[:_SHOWN]:
        box = spot_of(volume, block, face)
        rows.append(_panels(volume, box, face))
        titles.append(f"{face.axis} {face.plane}, z {box.start[0]}: {face.score:.1f}")
    if not rows:
        return None
    common = [name for name in rows[0] if all(name in row for row in rows)]
    return contact_sheet([{name: row[name] for name in common} for row in rows], titles)


def spot_of(volume: Volume, block: Box, face: JudgedFace) -> Box:
    """A square of one section around where a face of a block stands out most, inside the volume."""
    axis = "zyx".index(face.axis)
    start, stop = list(block.start), list(block.stop)
    start[axis], stop[axis] = face.plane - REACH, face.plane + REACH
    voxels = read_bytes(volume, Box(tuple(start), tuple(stop)))
    z, along = worst_spot(voxels if axis == 1 else voxels.transpose(0, 2, 1))
    centre = (face.plane, block.start[2] + along) if axis == 1 else (block.start[1] + along, face.plane)
    extents = [min(_EXTENT_PX, n) for n in volume.shape[1:]]
    corner = [min(max(c - e // 2, 0), n - e) for c, e, n in zip(centre, extents, volume.shape[1:], strict=True)]
    section = block.start[0] + z
    return Box((section, *corner), (section + 1, *(a + e for a, e in zip(corner, extents, strict=True))))


def _panels(volume: Volume, box: Box, face: JudgedFace) -> dict[str, NDArray[Any]]:
    probability, raw = read_bytes(volume, box)[0], raw_behind(volume, box)
    panels: dict[str, NDArray[Any]] = {} if raw is None else {"raw": _ticked(shown_grey(raw), box, face)}
    panels["membrane probability"] = _ticked(probability, box, face)
    across = "zyx".index(face.axis) - 1
    difference = np.abs(np.diff(probability.astype(np.int16), axis=across, prepend=0))
    difference[(slice(0, 1), slice(None)) if across == 0 else (slice(None), slice(0, 1))] = 0
    panels["difference across the face"] = _ticked(difference.astype(np.uint8), box, face)
    return panels


def _ticked(grey: NDArray[np.uint8], box: Box, face: JudgedFace) -> NDArray[np.uint8]:
    """Ticks at the edges point at the face, and leave it to be seen."""
    marks = np.zeros(grey.shape, bool)
    turned = marks if face.axis == "y" else marks.T
    plane = face.plane - box.start["zyx".index(face.axis)]
    for edge in (slice(0, _TICK_PX), slice(-_TICK_PX, None)):
        turned[max(plane - 1, 0) : plane + 1, edge] = True
    return painted(grey, marks, _MARK)


def read_bytes(volume: Volume, box: Box) -> NDArray[np.uint8]:
    """Probability as bytes, however it is stored."""
    voxels = volume.read(box)
    return voxels if voxels.dtype == np.uint8 else quantise(voxels.astype(np.float32))
