"""Scores against the threshold: what choosing another one would have cost, as curves, a table and a picture.

The metrics' step is the threshold in percent, so that MLflow draws the curves of several runs over one axis, whichever
data and settings they have.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from math import isclose
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.tracking.runs import Tracker

GROUP, FILE = "by_threshold", "threshold_curve"
_COLOURS = ("tab:blue", "tab:green", "tab:red", "tab:orange", "tab:purple")


@dataclass(frozen=True)
class Chart:
    """What is drawn over the threshold.

    Attributes:
      above: titles by metric, of what is drawn above.
      below: and below.
      scales: what the two axes are called.
      axis: what the threshold does.
    """

    above: Mapping[str, str]
    below: Mapping[str, str]
    scales: tuple[str, str]
    axis: str

    @property
    def drawn(self) -> dict[str, str]:
        """All titles by metric."""
        return {**self.above, **self.below}


ISBI = Chart(
    {"v_rand": "V_Rand", "v_info": "V_Info"},
    {"pixel_error": "pixel error", "rand_error": "Rand error"},
    ("score (1 is perfect)", "error (0 is perfect)"),
    "threshold: a pixel is cell where its cell probability is above",
)
AGGLOMERATION = Chart(
    {"voi_split": "VOI split", "voi_merge": "VOI merge", "voi": "VOI"},
    {"adapted_rand_error_cremi": "adapted Rand error (CREMI)", "cremi_score": "CREMI score"},
    ("bits (0 is perfect)", "error (0 is perfect)"),
    "threshold: fragments are one cell where the membrane probability between them is below",
)
DRAWN = ISBI.drawn

Row = Mapping[str, float]
"""`threshold` and scores by name."""


def log_threshold_curve(
    run: Tracker, rows: Sequence[Row], frozen: float | None, step: int = 0, chart: Chart = ISBI
) -> None:
    """Log scores at every threshold: metrics `by_threshold/NAME`, threshold_curve.csv and threshold_curve.png.

    Again by a resumed job, it changes nothing.

    Args:
      run: whose scores they are.
      rows: one per threshold, ascending.
      frozen: the threshold that is used, marked in table and picture; None marks none.
      step: the picture's: training steps behind the scores.
      chart: which scores.
    """
    # A second set of points on the same steps would draw each curve twice, joined by a line across.
    if run.has_metric(f"{GROUP}/{next(iter(chart.drawn))}"):
        return
    run.text(f"{FILE}.csv", curve_table(rows, frozen))
    run.picture(FILE, draw_curve(rows, frozen, chart), step, "scores against the threshold:")
    for row in rows:
        percent = 100 * row["threshold"]
        if isclose(percent, round(percent), abs_tol=1e-4):  # steps are whole; the last threshold is just below 1
            run.metrics({f"{GROUP}/{name}": row[name] for name in chart.drawn}, step=round(percent))


def curve_table(rows: Sequence[Row], frozen: float | None) -> str:
    """The scores as CSV, with a column that marks the frozen threshold.

    >>> print(curve_table([{"threshold": 0.5, "v_rand": 0.9}], 0.5), end="")
    threshold,v_rand,frozen
    0.5,0.9,yes
    """
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*rows[0], "frozen"])
    for row in rows:
        table.writerow([*(f"{value:.6g}" for value in row.values()), "yes" if _same(row["threshold"], frozen) else ""])
    return text.getvalue()


def draw_curve(rows: Sequence[Row], frozen: float | None, chart: Chart = ISBI) -> NDArray[np.uint8]:
    """Scores above, errors below, over one axis of thresholds; the frozen one is a dashed line with its values.

    Returns:
      uint8, (y, x, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), dpi=100, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    at = next((row for row in rows if _same(row["threshold"], frozen)), None)
    for (name, title), colour in zip(chart.drawn.items(), _COLOURS, strict=False):
        axes = below if name in chart.below else above
        label = title if at is None else f"{title}, {at[name]:.4f} at {frozen:g}"
        axes.plot([row["threshold"] for row in rows], [row[name] for row in rows], "o-", color=colour, label=label)
    for axes, title in zip((above, below), chart.scales, strict=True):
        _finish_axes(axes, title, frozen)
    below.set_xlabel(chart.axis)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _finish_axes(axes: Any, title: str, frozen: float | None) -> None:
    if frozen is not None:
        axes.axvline(frozen, color="black", linestyle="--", linewidth=1, label=f"frozen threshold {frozen:g}")
    axes.set_ylabel(title)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.legend()


def _same(threshold: float, frozen: float | None) -> bool:
    return frozen is not None and isclose(threshold, frozen, abs_tol=1e-9)
