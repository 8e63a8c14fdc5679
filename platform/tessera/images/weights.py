"""Border weight maps: what tells a network that the thin membrane between two cells matters most.

A one-pixel gap in a membrane merges two cells and costs little in plain cross-entropy. Ronneberger 2015 weighs the
membrane between close cells up to eleven-fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log, sqrt
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.targets import CELL, MEMBRANE, UNKNOWN

# Border terms below this fraction of w0 are set to 0, which bounds how far a cell reaches.
NEGLIGIBLE = 1e-6
CLASSES = (MEMBRANE, CELL)


def border_weights(
    labels: NDArray[Any], w0: float = 10.0, sigma_px: float = 5.0, class_balance: bool = False
) -> NDArray[np.float32]:
    """The weight map of equation 2: w = w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)) on membrane, w = w_c inside cells.

    Cells are the 4-connected components of `labels > 0`; d1 and d2 are the exact Euclidean distances from a membrane
    pixel to the nearest pixel of the nearest and of the second-nearest cell. The paper computes the border term for the
    "background pixels" between touching cells; inside a cell it would weigh up the cell's own rim.
    The term is 0 where d1 + d2 exceeds `border_reach_px`, where it is below 1e-6 w0; a section of fewer than two cells
    has none. w_c is 1, or with `class_balance` that of `class_weights` over this section.

    Args:
      labels: integer or bool, (y, x); above 0 is cell, 0 is membrane.
      w0: height of the border term.
      sigma_px: its width, pixels.
      class_balance: weigh the two classes alike.

    Returns:
      float32, (y, x).

    Raises:
      ValueError: labels are not 2D integers, w0 is negative, or sigma is not positive.

    Source: Ronneberger, Fischer and Brox 2015, section 3, equation 2 (w0 = 10, sigma about 5 pixels).
    """
    _check(labels, w0, sigma_px)
    cells = labels > 0
    return _class_map(cells, class_balance) + _border_term(cells, w0, sigma_px)


def weights_of_targets(
    targets: Sequence[NDArray[np.uint8]], w0: float = 10.0, sigma_px: float = 5.0, class_balance: bool = False
) -> tuple[NDArray[np.float32], ...]:
    """The weight maps of sections whose pixels are not all known: 0 on unknown pixels, `border_weights` elsewhere.

    Unknown pixels are no cell and count in neither class. So a membrane pixel whose second cell was not annotated
    weighs what the next known cell makes of it, which is less, never more. Pieces of one cell with unknown pixels
    between them are two cells, as at the true edge of a section: it raises known membrane beside the gap, within the
    reach of both pieces. To join all cells that meet unknown area instead would take the border from most membrane of a
    small annotated patch, where nearly every cell meets it.

    Args:
      targets: uint8, (y, x), of one extent or several: `MEMBRANE`, `CELL` or `UNKNOWN`.
      w0: height of the border term.
      sigma_px: its width, pixels.
      class_balance: weigh the two classes alike, over the known pixels of all sections together, as in the paper.

    Returns:
      float32, (y, x), one per section.

    Raises:
      ValueError: w0 is negative, or sigma is not positive.
    """
    of_membrane, of_cell = 1.0, 1.0
    if class_balance:
        of_membrane, of_cell = class_weights(*(sum(int(np.count_nonzero(t == c)) for t in targets) for c in CLASSES))
    maps = []
    for target in targets:
        cells = target == CELL
        classes = np.where(cells, np.float32(of_cell - 1), np.float32(of_membrane - 1))
        maps.append(np.where(target == UNKNOWN, np.float32(0), border_weights(cells, w0, sigma_px) + classes))
    return tuple(maps)


def class_weights(membrane_pixels: int, cell_pixels: int) -> tuple[float, float]:
    """The weights w_c (membrane, cell) that give both classes the same total and the mean pixel weight 1.

    w_c of a class = all pixels / (2 x pixels of the class). Where one class is absent there is nothing to balance and
    both weigh 1.

    >>> class_weights(20, 80)
    (2.5, 0.625)
    """
    total = membrane_pixels + cell_pixels
    if not (membrane_pixels and cell_pixels):
        return 1.0, 1.0
    return total / (2 * membrane_pixels), total / (2 * cell_pixels)


def border_reach_px(sigma_px: float) -> float:
    """The sum d1 + d2, in pixels, beyond which the border term is below 1e-6 w0: sigma sqrt(2 ln 1e6).

    >>> round(border_reach_px(5.0), 2)
    26.28
    """
    return sigma_px * sqrt(-2 * log(NEGLIGIBLE))


def _class_map(cells: NDArray[np.bool_], class_balance: bool) -> NDArray[np.float32]:
    if not class_balance:
        return np.ones(cells.shape, np.float32)
    count = int(np.count_nonzero(cells))
    membrane, cell = class_weights(cells.size - count, count)
    return np.where(cells, np.float32(cell), np.float32(membrane))


def _border_term(cells: NDArray[np.bool_], w0: float, sigma_px: float) -> NDArray[np.float32]:
    reach = border_reach_px(sigma_px)
    nearest, second = _two_nearest(cells, reach)
    distance = nearest + second
    term = w0 * np.exp(-(distance**2) / np.float32(2 * sigma_px**2))
    return np.where(cells | (distance > reach), np.float32(0), term.astype(np.float32))


def _two_nearest(cells: NDArray[np.bool_], reach_px: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances to the nearest and second-nearest cell, float32 (y, x), exact wherever both are within the reach.

    Each cell's distances are computed in its bounding box grown by the reach: outside it the cell is farther than that.
    One transform of the whole section per cell gives the same, at a hundred times the work.
    """
    nearest = np.full(cells.shape, np.inf, np.float32)
    second = nearest.copy()
    names, boxes = _components(cells)
    for name, box in enumerate(boxes, start=1):
        window = box.grown((ceil(reach_px),) * 2).clipped(Box.whole(cells.shape)).slices
        outside = (names[window] != name).view(np.uint8)
        # OpenCV's square root differs in the last bit from call to call; the squared distance is an integer.
        squared = np.rint(np.square(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)))
        np.minimum(second[window], np.maximum(nearest[window], squared), out=second[window])
        np.minimum(nearest[window], squared, out=nearest[window])
    return np.sqrt(nearest), np.sqrt(second)


def _components(cells: NDArray[np.bool_]) -> tuple[NDArray[np.int32], list[Box]]:
    """4-connected components, int32 (y, x) numbered from 1, and the bounding box of each."""
    _, names, stats, _ = cv2.connectedComponentsWithStats(cells.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    corners = stats[1:, [cv2.CC_STAT_TOP, cv2.CC_STAT_LEFT, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]].tolist()
    return names, [Box((y, x), (y + height, x + width)) for y, x, height, width in corners]


def _check(labels: NDArray[Any], w0: float, sigma_px: float) -> None:
    if labels.ndim != 2 or labels.dtype.kind not in "iub":
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}: border weights want integers (y, x), 0 on membrane; "
            "probabilities would make every pixel a cell. Threshold them, or take one section."
        )
    if not (np.isfinite(w0) and w0 >= 0):
        raise ValueError(f"w0={w0} would make border pixels weigh less than nothing: give 0 or more, such as 10.")
    if not (np.isfinite(sigma_px) and sigma_px > 0):
        raise ValueError(f"sigma_px={sigma_px} is no width: give a positive number of pixels, such as 5.")
