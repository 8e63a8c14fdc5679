"""Annotated sections in memory, checked: what training learns from and is validated on.

A few annotated sections are small; the terabytes are what comes after. So they are read once, whole, and everything
that can be wrong with them is said before a worker starts.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.levels import check_levels, grey_levels, sampled_voxels
from tessera.images.neighbours import neighbours_of
from tessera.images.targets import CELL, MEMBRANE, UNKNOWN, LabelRule, UnknownLabel, unknown_value
from tessera.settings.places import input_path
from tessera.settings.sections import parse_sections
from tessera.settings.train import AnnotatedSections, DataSettings
from tessera.storage.identity import fingerprint
from tessera.storage.volumes import Volume
from tessera.workflows.alignment import Offset, labels_origin
from tessera.workflows.outputs import open_finished

_log = logging.getLogger(__name__)

MOST_MEMBRANE = 0.5
# Of a larger volume, what is read around its labels: at least what any network up to 4 poolings sees.
CONTEXT_PX = 128


@dataclass(frozen=True)
class AnnotatedSet:
    """Sections and their targets.

    Attributes:
      raw: one (y, x) array per section, of the volumes' dtype.
      membrane: uint8, (y, x), per section: 1 membrane, 0 cell, 255 unknown (images/targets.py).
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
    origin = labels_origin(volume, labels)
    if volume.dtype.kind not in "uif":
        raise ValueError(
            f"image {volume.url} has dtype {volume.dtype}, which is no grey scale: is it the mask? Check which of "
            "volume and labels is which, or save the image as uint8."
        )
    if volume.voxel_size_nm is None:
        raise ValueError(f"{volume.url} has no voxel size: give it one with tessera ingest --voxel_size_nm.")
    labelled = parse_sections(chosen.sections, labels.shape[0])
    check_is_labels(labels)
    sections = _sections_of(volume, labels, origin, labelled)
    window = labels_window(volume, labels, origin)
    boxes = [Box((z, 0, 0), (z + 1, *labels.shape[1:])) for z in labelled]
    seen = [neighbours_of(z, input_sections, volume.shape[0], volume.invalid_sections) for z in sections]
    raw = {z: _section_of(volume, z, window) for z in dict.fromkeys([*sections, *chain(*seen)])}
    values = [labels.read(box)[0] for box in boxes]
    if data.labels_are != "instances":
        check_mask_values(values, labels.url, data.unknown_label)
    known = [data.label_rule.target(one) for one in values]
    check_membrane_share(known, labels.url, data.label_rule, "--data.")
    targets = [_placed_in(window, target, origin) for target in known]
    names = [f"{volume.url.rsplit('/', 1)[-1]} section {z}" for z in sections]
    kept = annotated_ones(targets, names)
    return AnnotatedSet(
        raw=tuple(raw[sections[i]] for i in kept),
        membrane=tuple(targets[i] for i in kept),
        names=tuple(names[i] for i in kept),
        dtype=str(volume.dtype),
        voxel_size_nm=volume.voxel_size_nm,
        fingerprint=fingerprint(volume, [_section_box(z, window) for z in raw]) + fingerprint(labels, boxes),
        neighbours=tuple(np.stack([raw[z] for z in seen[i]]) for i in kept) if input_sections > 1 else (),
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


def check_scorable(held_out: AnnotatedSet) -> None:
    """Refuse held-out sections in which no cell is known: scores compare cells, and no threshold could be chosen.

    Raises:
      ValueError: names them.
    """
    bare = [name for name, target in zip(held_out.names, held_out.membrane, strict=True) if not (target == CELL).any()]
    if bare:
        raise ValueError(
            f"no pixel of {', '.join(bare)} is known to be cell: scores compare cells, so that no threshold could be "
            "chosen there. Annotate some, or leave it out of data.validation."
        )


def labels_window(volume: Volume, labels: Volume, origin: Offset) -> Box:
    """Rows and columns of the volume that are read for its labels: theirs, and what a network sees around them."""
    sections = Box(origin[1:], tuple(a + n for a, n in zip(origin[1:], labels.shape[1:], strict=True)))
    return sections.grown((CONTEXT_PX, CONTEXT_PX)).clipped(Box.whole(volume.shape[1:]))


def _sections_of(volume: Volume, labels: Volume, origin: Offset, labelled: Sequence[int]) -> tuple[int, ...]:
    """The volume's numbers of the labels' sections, none of them invalid or outside; nor are the labels' edges."""
    corner = Box(origin, tuple(a + n for a, n in zip(origin, labels.shape, strict=True)))
    if not Box.whole(volume.shape[1:]).contains(Box(corner.start[1:], corner.stop[1:])) or not all(
        0 <= z + origin[0] < volume.shape[0] for z in labelled
    ):
        raise ValueError(
            f"labels {labels.url} cover {corner} of {volume.url}, which has shape {volume.shape}: where there is no "
            "image nothing can be learned. Check their translations, or leave sections out of `sections`."
        )
    sections = tuple(z + origin[0] for z in labelled)
    invalid = sorted({z for z in sections if z in volume.invalid_sections or z - origin[0] in labels.invalid_sections})
    if invalid:
        raise ValueError(f"sections {invalid} of {volume.url} are missing or blank: leave them out of `sections`.")
    return sections


def _placed_in(window: Box, target: NDArray[np.uint8], origin: Offset) -> NDArray[np.uint8]:
    """A target in its window of the volume's section, where all else is unknown."""
    if target.shape == window.shape:
        return target
    placed = np.full(window.shape, UNKNOWN, np.uint8)
    placed[Box.whole(target.shape).shifted(origin[1:]).relative_to(window.start).slices] = target
    return placed


def _section_box(z: int, window: Box) -> Box:
    return Box((z, *window.start), (z + 1, *window.stop))


def _section_of(volume: Volume, z: int, window: Box) -> NDArray[Any]:
    section: NDArray[Any] = volume.read(_section_box(z, window))[0]
    if not np.isfinite(section).all():
        raise ValueError(
            f"section {z} of {volume.url} holds NaN or infinite values: the loss would become NaN. "
            "Replace them before ingest."
        )
    return section


def annotated_ones(targets: Sequence[NDArray[np.uint8]], names: Sequence[str]) -> list[int]:
    """Positions of the sections in which something is known; the others are left out aloud.

    >>> annotated_ones([np.uint8([[0, 255]]), np.uint8([[255, 255]])], ["a", "b"])
    [0]
    """
    kept = [i for i, target in enumerate(targets) if (target != UNKNOWN).any()]
    for i in sorted(set(range(len(targets))) - set(kept)):
        _log.warning("%s is left out: every pixel of it has the label that means unknown", names[i])
    return kept


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


def check_mask_values(sections: Sequence[NDArray[Any]], name: str, unknown: UnknownLabel = None) -> None:
    """Refuse a mask of more values than 0, one other and the one that means unknown: it may be grey, or instances.

    Raises:
      ValueError: names the values found, and those of few pixels with their number.
    """
    counts: Counter[int] = Counter()
    for section in sections:
        values, pixels = np.unique(section, return_counts=True)
        counts.update(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
    left_out = unknown_value(sections[0].dtype, unknown)
    found = sorted(set(counts) - {left_out})
    if len(found) <= 2 and (len(found) < 2 or found[0] == 0):
        return
    shown = ", ".join(f"{value} ({counts[value]:,} px)" for value in found[:6]) + (", ..." if len(found) > 6 else "")
    besides = "" if left_out is None else f" besides {left_out}, unknown"
    ways = (
        "If each cell has an id of its own, pass --data.labels_are instances; if a value means unknown, pass it as "
        "--data.unknown_label; if this is a grey image, it is the wrong file."
    )
    raise ValueError(
        f"the labels {name} hold the values {shown}{besides}: a mask has two, 0 for membrane and one for cell. {ways}"
    )


def check_membrane_share(targets: Iterable[NDArray[np.uint8]], name: str, rule: LabelRule, prefix: str = "--") -> None:
    """Refuse labels of one class, and labels that look inverted, with the setting that mends it.

    A section of which a part is unknown may show one class alone, as strokes along membranes do, and which class
    covers more of what is known then depends on what was drawn: only whole sections tell of inversion.

    Args:
      targets: of the chosen sections, (y, x).
      name: of the labels, for messages.
      rule: by which they were made.
      prefix: of the settings' names.

    Raises:
      ValueError: says which, and the setting that mends it.
    """
    counts = [(int(np.count_nonzero(t == MEMBRANE)), int(np.count_nonzero(t == CELL)), t.size) for t in targets]
    membrane, cell = (sum(count[i] for count in counts) for i in (0, 1))
    if not membrane + cell:
        raise ValueError(
            f"the labels {name} are unknown at every pixel of the chosen sections: nothing can be learned or scored. "
            "Choose sections that were annotated, or check which value means unknown."
        )
    if not (membrane and cell):
        raise ValueError(
            f"the labels {name} hold only {'membrane' if membrane else 'cell'} in the chosen sections: nothing can be "
            f"told apart. {_one_class_hint(rule, prefix)}check the label file and the sections."
        )
    never = [i for i, (dark, _, size) in enumerate(counts) if dark == size]
    if never:
        raise ValueError(
            f"the labels {name} hold only membrane in {len(never)} of the chosen sections (the first is number "
            f"{never[0]} of the choice, counted from 0): was it never annotated? Leave it out of the sections."
        )
    share = float(np.mean([dark / size for dark, light, size in counts if dark + light == size] or [0.0]))
    if share > MOST_MEMBRANE:
        other = "mask" if rule.are == "membranes" else "membranes"
        zero = "membrane" if rule.are == "membranes" else "cell"
        raise ValueError(
            f"membrane covers {share:.0%} of the labels {name}: are they inverted (0 = {zero})? "
            f"If so, pass {prefix}labels_are {other}; membrane is usually 15-30%."
        )


def _one_class_hint(rule: LabelRule, prefix: str) -> str:
    if rule.are == "instances" and rule.border_px == 0:
        return f"Where instances touch, {prefix}border_px 2 draws a membrane between them; "
    if rule.are == "membranes":
        return "0 must be cell, any other value but that for unknown membrane; "
    return "0 must be membrane, any other value but that for unknown cell; "
