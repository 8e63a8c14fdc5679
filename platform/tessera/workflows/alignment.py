"""Which voxels of two volumes are the same place: told by where their metadata say that they lie.

    raw     |.......................|      labels lie 911 voxels into it: CREMI's `offset`, NGFF's translation
    labels          |.......|

Labels are often a part of a larger volume. Cutting the volume by hand is how they come to lie a few voxels beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tessera.geometry.boxes import Box
from tessera.storage.volumes import Volume

Offset = tuple[int, int, int]
_ORIGIN = (0.0, 0.0, 0.0)
# Offsets are written in nanometers and as text: a hundredth of a voxel is rounding.
_ROUNDING = 0.01


def labels_origin(volume: Volume, labels: Volume) -> Offset:
    """The voxel of a volume at which voxel 0 of its labels lies, z, y, x; it may be negative.

    Labels of the same extent that do not say where they lie belong to the volume as it is.

    Raises:
      ValueError: axes or voxel sizes differ, extents differ and neither says where it lies, voxels lie between each
        other, or the two do not meet.
    """
    _check_comparable(volume, labels)
    if labels.shape == volume.shape and labels.translation_nm is None:
        return 0, 0, 0
    _check_placed(volume, labels)
    size = volume.voxel_size_nm or labels.voxel_size_nm or (1.0, 1.0, 1.0)
    shift = np.subtract(labels.translation_nm or _ORIGIN, volume.translation_nm or _ORIGIN) / size
    z, y, x = (int(n) for n in np.rint(shift))
    if np.abs(shift - (z, y, x)).max() > _ROUNDING:
        raise ValueError(
            f"labels {labels.url} lie {[round(float(n), 3) for n in shift]} voxels into {volume.url}, between its "
            "voxels: labels cannot be moved by parts of one. Mend the translation of one of them (--offset_nm of "
            "tessera ingest)."
        )
    if not met_by_labels(volume, labels, (z, y, x)).size:
        raise ValueError(
            f"labels {labels.url} begin at voxel {[z, y, x]} of {volume.url}, which has shape {volume.shape}: they do "
            "not meet. Check their translations, and which labels belong to this volume."
        )
    return z, y, x


def met_by_labels(volume: Volume, labels: Volume, origin: Offset) -> Box:
    """The voxels of a volume that its labels cover; of size 0 where they do not meet."""
    return Box.whole(labels.shape).shifted(origin).clipped(Box.whole(volume.shape))


def sections_to_score(
    chosen: Sequence[int], volume: Volume, labels: Volume, origin: Offset, *, named: bool
) -> tuple[int, ...]:
    """The sections of the labels that both volumes have, and that neither calls invalid.

    Args:
      chosen: of the labels.
      volume: what is scored.
      labels: the ground truth.
      origin: the voxel of the volume at which the labels begin.
      named: whether a user chose them by number: then all must be left.

    Raises:
      ValueError: one that was named is not left, or none is.
    """
    invalid = labels.invalid_sections | {z - origin[0] for z in volume.invalid_sections}
    met = met_by_labels(volume, labels, origin)
    outside = [z for z in chosen if not met.start[0] <= z + origin[0] < met.stop[0]]
    if outside and named:
        raise ValueError(f"sections {outside} of {labels.url} lie outside {volume.url}: leave them out of --sections.")
    lost = [z for z in chosen if z in invalid]
    if lost and named:
        raise ValueError(
            f"sections {lost} are marked invalid in {volume.url} or {labels.url}: leave them out of --sections."
        )
    left = tuple(z for z in chosen if z not in invalid and z not in outside)
    if not left:
        raise ValueError(f"every section of {volume.url} or its labels is marked invalid: there is nothing to score.")
    return left


def _check_comparable(volume: Volume, labels: Volume) -> None:
    if len(volume.shape) != 3 or len(labels.shape) != 3:
        raise ValueError(
            f"{volume.url} has shape {volume.shape}, its labels {labels.url} have {labels.shape}: both must be z, y, x "
            "and equal, or lie in each other. Save one channel of each."
        )
    size, own = volume.voxel_size_nm, labels.voxel_size_nm
    if size is not None and own is not None and not np.allclose(size, own, rtol=0.01):
        raise ValueError(
            f"voxels of {volume.url} are {list(size)} nm, those of its labels {labels.url} {list(own)} nm: "
            "labels would belong to other places. Give labels of the same voxel size."
        )


def _check_placed(volume: Volume, labels: Volume) -> None:
    placed = volume.translation_nm, labels.translation_nm, labels.attributes.get("offset_nm")
    if labels.shape != volume.shape and all(place is None for place in placed):
        raise ValueError(
            f"{volume.url} has shape {volume.shape}, its labels {labels.url} have {labels.shape}: both must be z, y, x "
            "and equal, or voxels would be compared with others. Give the labels of the same volume; where they are a "
            "part of it, ingest them with --offset_nm, where they begin, in nanometers."
        )
