"""Sections for the eye: raw, membrane probability, truth and cells, cut from a job's volumes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.colours import label_colours, shown_grey, target_colours
from tessera.images.quantise import decode
from tessera.images.targets import LabelRule
from tessera.storage.locations import Url, place_of
from tessera.storage.resampled import resampled
from tessera.storage.volumes import Volume, open_volume
from tessera.workflows.alignment import Offset, met_by_labels
from tessera.workflows.annotated import AnnotatedSet

_log = logging.getLogger(__name__)

# A larger section is shown by its middle: pictures are for judging voxels, and a browser has to load them.
LARGEST_PX = 1024
_MASK = LabelRule()
# A training shows its sections at every checkpoint: few and small ones, for its picture is kept each time.
VALIDATION_SECTIONS, VALIDATION_PX = 2, 512


@dataclass(frozen=True)
class SectionPanels:
    """The volumes of a scored prediction.

    Attributes:
      probability: membrane probability, as `decode` reads it.
      labels: the truth.
      cells: labels made from the probability, of the same shape.
      rule: what the truth's values mean.
      origin: the voxel of the probability at which the truth begins.
    """

    probability: Volume
    labels: Volume
    cells: Volume | None = None
    rule: LabelRule = _MASK
    origin: Offset = (0, 0, 0)

    def of(self, z: int) -> dict[str, NDArray[Any]]:
        """Panels of one section of the truth, pixel for pixel."""
        met = met_by_labels(self.probability, self.labels, self.origin)
        box = middle_of_section(met, z + self.origin[0])
        raw = raw_behind(self.probability, box)
        panels: dict[str, NDArray[Any]] = {} if raw is None else {"raw": shown_grey(raw)}
        panels["membrane probability"] = decode(self.probability.read(box)[0])
        target = self.rule.target(self.labels.read(box.relative_to(self.origin))[0])
        panels["truth"] = target_colours(target)  # bright membrane, like the probability beside it
        if self.cells is not None:
            panels["cells"] = label_colours(self.cells.read(box)[0])
        return panels


def middle_of_section(box: Box, z: int) -> Box:
    """What is shown of a box's section z: all of it, or its middle where it is larger than a browser likes."""
    extents = [min(n, LARGEST_PX) for n in box.shape[1:]]
    starts = [a + (n - m) // 2 for a, n, m in zip(box.start[1:], box.shape[1:], extents, strict=True)]
    return Box((z, *starts), (z + 1, *(a + b for a, b in zip(starts, extents, strict=True))))


def raw_behind(probability: Volume, box: Box) -> NDArray[Any] | None:
    """What was predicted there; None where the raw volume has been moved since."""
    name, roi = probability.attributes.get("input"), probability.attributes.get("roi")
    if not name or not roi:
        return None
    # Of the same store, so reached in the same way: without credentials if the probability is.
    anonymous = isinstance(probability.place, Url) and probability.place.anonymous
    try:
        level, again = probability.attributes.get("input_level", 0), probability.attributes.get("resampled")
        volume = open_volume(
            place_of(name, anonymous=anonymous),
            level=level,
            voxel_size_nm=again["from_nm"] if again else None,
        )
        volume = resampled(volume, again["to_nm"]) if again else volume
        raw: NDArray[Any] = volume.read(box.shifted(tuple(roi[0])))[0]
    except (OSError, ValueError) as error:
        _log.warning("the raw volume %s cannot be read any more: pictures go without it (%s)", name, error)
        return None
    return raw


def validation_arrays(held_out: AnnotatedSet, probabilities: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """The middles of the first and last held-out section: the same at every checkpoint, so that pictures show progress.

    Args:
      held_out: the sections.
      probabilities: of each, float32, (y, x).

    Returns:
      `raw`, `probability` and `membrane`, (sections, y, x), and their `names`.
    """
    chosen = sorted({0, len(probabilities) - 1})[:VALIDATION_SECTIONS]
    extents = [min(VALIDATION_PX, *(probabilities[i].shape[axis] for i in chosen)) for axis in (0, 1)]
    kept = {"raw": held_out.raw, "probability": probabilities, "membrane": held_out.membrane}
    stacks = {name: np.stack([_centre(sections[i], extents) for i in chosen]) for name, sections in kept.items()}
    return {**stacks, "names": np.array([held_out.names[i] for i in chosen])}


def validation_panels(arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    """Raw, probability and truth of each section that `validation_arrays` kept."""
    stacks = zip(arrays["raw"], arrays["probability"], arrays["membrane"], strict=True)
    return [
        {"raw": shown_grey(raw), "membrane probability": probability, "truth": target_colours(membrane)}
        for raw, probability, membrane in stacks
    ]


def _centre(section: NDArray[Any], extents: Sequence[int]) -> NDArray[Any]:
    y, x = ((whole - part) // 2 for whole, part in zip(section.shape, extents, strict=True))
    return section[y : y + extents[0], x : x + extents[1]]
