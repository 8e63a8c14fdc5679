"""Pictures of a segmentation: a few sections in a row, each id in the same colour in all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.colours import label_colours, shown_grey
from tessera.images.quantise import decode
from tessera.storage.volumes import Volume
from tessera.tracking.pictures import contact_sheet
from tessera.tracking.runs import Tracker
from tessera.workflows.panels import middle_of_section, raw_behind

# As few as show whether an id goes on from section to section.
_SECTIONS = 4


def picture_cells(run: Tracker, probability: Volume, fragments: Volume | None, cells: Volume) -> None:
    """Log raw, probability, fragments and cells of sections that follow each other, from the middle of the volume.

    Args:
      run: the segmentation's.
      probability: what was cut.
      fragments: what was merged; None where there are none.
      cells: the labels, as large.
    """
    sections = shown_sections(cells.shape[0], cells.invalid_sections)
    if sections:
        rows = [_panels(probability, fragments, cells, z) for z in sections]
        run.picture("cells", contact_sheet(rows, [f"section {z}" for z in sections]), step=0)


def shown_sections(sections: int, invalid: frozenset[int]) -> list[int]:
    """The valid ones nearest to the middle, ascending.

    >>> shown_sections(10, frozenset({5})), shown_sections(2, frozenset())
    ([3, 4, 6, 7], [0, 1])
    """
    valid = (z for z in range(sections) if z not in invalid)
    return sorted(sorted(valid, key=lambda z: (abs(z - sections // 2), -z))[:_SECTIONS])


def _panels(probability: Volume, fragments: Volume | None, cells: Volume, z: int) -> dict[str, NDArray[Any]]:
    box = middle_of_section(Box.whole(cells.shape), z)
    raw = raw_behind(probability, box)
    panels: dict[str, NDArray[Any]] = {} if raw is None else {"raw": shown_grey(raw)}
    panels["membrane probability"] = np.asarray(decode(probability.read(box)[0]))
    if fragments is not None:
        panels["fragments"] = label_colours(fragments.read(box)[0])
    panels["cells"] = label_colours(cells.read(box)[0])
    return panels
