"""Annotated sections in memory, checked: what training learns from and is validated on.

A few annotated sections are small; the terabytes are what comes after. So they are read once, whole, and everything
that can be wrong with them is said before a worker starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.levels import check_levels, grey_levels, sampled_voxels
from tessera.images.neighbours import neighbours_of
from tessera.settings.places import input_path
from tessera.settings.sections import parse_sections
from tessera.settings.train import AnnotatedSections, DataSettings
from tessera.storage.identity import fingerprint
from tessera.storage.volumes import Volume
from tessera.workflows.outputs import open_finished

MOST_MEMBRANE = 0.5


@dataclass(frozen=True)
class AnnotatedSet:
    """Sections and their targets.

    Attributes:
      raw: one (y, x) array per section, of the volumes' dtype.
      membrane: uint8, (y, x), per section: 1 membrane, 0 cell.
      names: volume and section number, for messages and pictures.
      dtype: of the raw volumes.
      voxel_size_nm: z, y, x.
      fingerprint: digest of the decoded voxels and labels used.
      neighbours: for a 2.5D network the raw stack (sections, y, x) around each section, itself in the middle; one whole
        section more per section and channel in memory. Empty for a 2D one.
    """

    raw: tuple[NDArray[Any], ...]
    membrane: tuple[NDArray[np.uint8], ...]
    names: tuple[str, ...]
    dtype: str
    voxel_size_nm: tuple[float, float, float]
    fingerprint: str
    neighbours: tuple[NDArray[Any], ...] = ()

    @property
    def stacks(self) -> tuple[NDArray[Any], ...]:
        """What a network sees of each section, (sections, y, x), the section in the middle."""
        return self.neighbours or tuple(section[np.newaxis] for section in self.raw)


def load_annotated(chosen: Sequence[AnnotatedSections], data: DataSettings, input_sections: int = 1) -> AnnotatedSet:
    """Read annotated sections and check them, with their neighbours for a 2.5D network.

    Neighbours come from the volume that a section lies in, beyond the annotated ones too, as prediction will see them:
    mirrored at the volume's first and last section, and around missing ones. A held-out section may so be the raw
    neighbour of one that is learned from. That gives nothing away: its labels are not read, and grey values are all
    that prediction has as well.

    Args:
      chosen: the part of `data` to read.
      data: says what its labels mean.
      input_sections: how many sections the network sees.

    Raises:
      FileNotFoundError: a volume is not there.
      ValueError: image and labels differ in shape, volumes differ in dtype or voxel size, sections are invalid or
        outside, or the labels are not what they should be.
    """
    parts = [_load_one(one, data, input_sections) for one in chosen]
    for name in ("dtype", "voxel_size_nm"):
        found = sorted({str(getattr(part, name)) for part in parts})
        if len(found) > 1:
            raise ValueError(
                f"training volumes differ in {name}: {' and '.join(found)}. One network learns one scale of grey "
                "values and lengths: convert them to the same before ingest."
            )
    return AnnotatedSet(
        raw=tuple(section for part in parts for section in part.raw),
        membrane=tuple(section for part in parts for section in part.membrane),
        names=tuple(name for part in parts for name in part.names),
        dtype=parts[0].dtype,
        voxel_size_nm=parts[0].voxel_size_nm,
        fingerprint=hashlib.sha256("".join(part.fingerprint for part in parts).encode()).hexdigest(),
        neighbours=tuple(stack for part in parts for stack in part.neighbours),
    )


def _load_one(chosen: AnnotatedSections, data: DataSettings, input_sections: int) -> AnnotatedSet:
    volume, labels = open_finished(input_path(chosen.volume)), open_finished(input_path(chosen.labels))
    if volume.shape != labels.shape or len(volume.shape) != 3:
        raise ValueError(
            f"image {volume.url} has shape {volume.shape}, its labels {labels.url} have {labels.shape}: both must be "
            "z, y, x and equal, or labels would belong to other pixels. Check which stacks were ingested."
        )
    if volume.dtype.kind not in "uif":
        raise ValueError(
            f"image {volume.url} has dtype {volume.dtype}, which is no grey scale: is it the mask? Check which of "
            "volume and labels is which, or save the image as uint8."
        )
    if volume.voxel_size_nm is None:
        raise ValueError(f"{volume.url} has no voxel size: give it one with tessera ingest --voxel_size_nm.")
    sections = parse_sections(chosen.sections, volume.shape[0])
    check_is_labels(labels)
    invalid = sorted(set(sections) & (volume.invalid_sections | labels.invalid_sections))
    if invalid:
        raise ValueError(f"sections {invalid} of {volume.url} are missing or blank: leave them out of `sections`.")
    boxes = [_section_box(volume, z) for z in sections]
    seen = [neighbours_of(z, input_sections, volume.shape[0], volume.invalid_sections) for z in sections]
    raw = {z: _section_of(volume, z) for z in dict.fromkeys([*sections, *chain(*seen)])}
    values = [labels.read(box)[0] for box in boxes]
    if data.labels_are == "mask":
        check_mask_values(values, labels.url)
    cells = [cells_of_labels(one, invert=data.invert_labels) for one in values]
    check_membrane_share(cells, labels.url)
    return AnnotatedSet(
        raw=tuple(raw[z] for z in sections),
        membrane=tuple((~cell).astype(np.uint8) for cell in cells),
        names=tuple(f"{volume.url.rsplit('/', 1)[-1]} section {z}" for z in sections),
        dtype=str(volume.dtype),
        voxel_size_nm=volume.voxel_size_nm,
        fingerprint=fingerprint(volume, [_section_box(volume, z) for z in raw]) + fingerprint(labels, boxes),
        neighbours=tuple(np.stack([raw[z] for z in stack]) for stack in seen) if input_sections > 1 else (),
    )


def check_neighbour_levels(training: AnnotatedSet) -> None:
    """Refuse stacks that the per_section rule cannot scale, where a neighbour is blank and nobody marked it.

    Raises:
      ValueError: names the section whose neighbour it is.
    """
    for name, stack in zip(training.names, training.neighbours, strict=False):
        half = len(stack) // 2
        levels = {k - half: grey_levels(sampled_voxels(section)) for k, section in enumerate(stack)}
        check_levels(levels, f"the neighbours of {name} (0 is itself)")


def _section_box(volume: Volume, z: int) -> Box:
    return Box((z, 0, 0), (z + 1, *volume.shape[1:]))


def _section_of(volume: Volume, z: int) -> NDArray[Any]:
    section: NDArray[Any] = volume.read(_section_box(volume, z))[0]
    if not np.isfinite(section).all():
        raise ValueError(
            f"section {z} of {volume.url} holds NaN or infinite values: the loss would become NaN. "
            "Replace them before ingest."
        )
    return section


def cells_of_labels(labels: NDArray[Any], *, invert: bool = False) -> NDArray[np.bool_]:
    """Where labels say cell: every value but 0; with `invert`, the other way round.

    Raises:
      ValueError: the labels are not whole numbers.
    """
    if labels.dtype.kind not in ("b", "u", "i"):
        raise ValueError(
            f"labels of dtype {labels.dtype} are not whole numbers: labels are names, not amounts. "
            "Save them as uint8 with 0 for membrane and 255 for cell."
        )
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(f"labels hold negative values, the least is {labels.min()}: 0 is membrane, above 0 is cell.")
    cells: NDArray[np.bool_] = (labels != 0) != invert
    return cells


def check_is_labels(labels: Volume) -> None:
    """Refuse a volume that was ingested as an image.

    Raises:
      ValueError: its grey values would pass for cells.
    """
    if labels.attributes.get("kind") in ("image", "raw", "membrane probability"):
        raise ValueError(
            f"{labels.url} is no label volume but holds {labels.attributes['kind']}: nearly every grey value would "
            "count as cell. Ingest the labels with --kind labels, and name that volume."
        )


def check_mask_values(sections: Sequence[NDArray[Any]], name: str) -> None:
    """Refuse a mask of more values than 0 and one other: it may be a grey image, or instances.

    Raises:
      ValueError: names the values found.
    """
    found = sorted({int(value) for section in sections for value in np.unique(section)})
    if len(found) > 2 or (len(found) == 2 and found[0] != 0):
        shown = ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")
        raise ValueError(
            f"the labels {name} hold the values {shown}: a mask has two, 0 for membrane and one for cell. If each cell "
            "has an id of its own, pass --data.labels_are instances; if this is a grey image, it is the wrong file."
        )


def check_membrane_share(cells: Iterable[NDArray[np.bool_]], name: str, switch: str = "--data.invert_labels") -> None:
    """Refuse labels of one class, and labels that look inverted; `switch` names the setting that inverts them.

    Raises:
      ValueError: says which, and the setting that mends it.
    """
    shares = [1.0 - float(cell.mean()) for cell in cells]
    share = float(np.mean(shares))
    if 1.0 in shares and share < 1.0:
        raise ValueError(
            f"the labels {name} hold only membrane in {shares.count(1.0)} of the chosen sections (the first is number "
            f"{shares.index(1.0)} of the choice, counted from 0): was it never annotated? Leave it out of the sections."
        )
    if share in (0.0, 1.0):
        raise ValueError(
            f"the labels {name} hold only {'membrane' if share else 'cell'} in the chosen sections: nothing can be "
            "told apart. 0 must be membrane, any other value cell; check the label file and the sections."
        )
    if share > MOST_MEMBRANE:
        raise ValueError(
            f"membrane covers {share:.0%} of the labels {name}: are they inverted (0 = cell)? "
            f"If so, pass {switch} true; membrane is usually 15-30%."
        )
