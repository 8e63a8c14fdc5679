"""Pictures that a person looks at: rows of sections, columns of raw, probability, truth and cells, pixel for pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

Panel = Mapping[str, NDArray[Any]]
"""Column title -> (y, x) grey, as uint8 or as a float in [0, 1], or (y, x, 3) uint8."""

# A caption needs this much room: smaller panels are enlarged by a whole number, so that a pixel stays a square.
_LEAST_PX = 256
_GAP_PX, _HEAD_PX, _SIDE_PX, _DPI = 8, 28, 28, 100
_CHARACTER_PX = 7  # of a row's title, on average


def contact_sheet(rows: Sequence[Panel], titles: Sequence[str]) -> NDArray[np.uint8]:
    """Draw panels side by side, one row per section; no pixel is interpolated, so that a seam would show.

    Args:
      rows: the sections' panels, all of one extent and with the same columns.
      titles: one per row.

    Returns:
      uint8, (y, x, 3).
    """
    tiles = [[_enlarged(_rgb(image)) for image in panel.values()] for panel in rows]
    height, width = tiles[0][0].shape[:2]
    down = [_HEAD_PX + i * (height + _GAP_PX) for i in range(len(rows))]
    across = [_SIDE_PX + i * (width + _GAP_PX) for i in range(len(rows[0]))]
    sheet = _captions((down[-1] + height + _GAP_PX, across[-1] + width + _GAP_PX), (height, width), rows[0], titles)
    for y, line in zip(down, tiles, strict=True):
        for x, tile in zip(across, line, strict=True):
            sheet[y : y + height, x : x + width] = tile
    return sheet


def _rgb(image: NDArray[Any]) -> NDArray[np.uint8]:
    grey = image if image.dtype == np.uint8 else np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[..., np.newaxis], 3, axis=2)


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, -(-_LEAST_PX // image.shape[1]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def _captions(
    extent: tuple[int, int], panel: tuple[int, int], columns: Panel, titles: Sequence[str]
) -> NDArray[np.uint8]:
    """A white sheet with the columns' titles above and the rows' at the left of where panels will lie."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (height, width), (step_y, step_x) = extent, (panel[0] + _GAP_PX, panel[1] + _GAP_PX)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for i, column in enumerate(columns):
        x = (_SIDE_PX + i * step_x + panel[1] / 2) / width
        figure.text(x, 1 - _HEAD_PX / 2 / height, column, ha="center", va="center", fontsize=10)
    for i, title in enumerate(titles):
        y = 1 - (_HEAD_PX + i * step_y + panel[0] / 2) / height
        figure.text(
            _SIDE_PX / 2 / width,
            y,
            fitting(title, panel[0] // _CHARACTER_PX),
            ha="center",
            va="center",
            fontsize=9,
            rotation=90,
        )
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:height, :width, :3].copy()  # type: ignore[no-untyped-call]


def fitting(title: str, most: int) -> str:
    """A title that does not run into the next row's: its end, where all of it is too long.

    >>> fitting("raw.zarr section 8", 10)
    '... tion 8'
    >>> fitting("section 8", 10)
    'section 8'
    """
    return title if len(title) <= most else f"... {title[-(most - 4) :]}"


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A PNG file's bytes of an RGB picture."""
    from matplotlib.image import imsave

    buffer = BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()
