"""Pictures that a person looks at: rows of sections, columns of raw, probability, truth and cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

Panel = Mapping[str, NDArray[Any]]
"""Column title -> (y, x) grey in [0, 1] or uint8, or (y, x, 3) uint8."""


def contact_sheet(rows: Sequence[Panel], titles: Sequence[str], *, inches: float = 3.6) -> NDArray[np.uint8]:
    """Draw panels side by side, one row per section.

    Args:
      rows: the sections' panels, all with the same columns.
      titles: one per row.
      inches: extent of one panel; 142 pixels an inch.

    Returns:
      uint8, (y, x, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = list(rows[0])
    figure = Figure(figsize=(inches * len(columns), inches * len(rows) + 0.3), dpi=142, layout="compressed")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=10)
    for line, panel, title in zip(axes, rows, titles, strict=True):
        for axis, column in zip(line, columns, strict=True):
            axis.imshow(panel[column], cmap="gray", vmin=0, vmax=_white(panel[column]), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title, fontsize=9)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _white(image: NDArray[Any]) -> float:
    return 255.0 if image.dtype == np.uint8 else 1.0


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A PNG file's bytes of an RGB picture."""
    from matplotlib.image import imsave

    buffer = BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()
