"""What a search leaves in MLflow: its trials as one table and one picture, and links to the best and to all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from tessera.tracking.pages import NOTE, link_to, run_address, with_link
from tessera.tracking.runs import Tracker

PARENT = "mlflow.parentRunId"
"""Tag of a run that MLflow lists below another."""
_MOST_COMPARED = 50  # an address of more would not fit a description


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as it is shown.

    Attributes:
      name: the trial's.
      state: finished, stopped or failed.
      point: the searched settings' values.
      score: None where there is none.
      run_id: of its run; None where it has none.
    """

    name: str
    state: str
    point: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None
    run_id: str | None = None


def close_run(uri: str, run_id: str, state: str, tags: Mapping[str, str]) -> None:
    """End a run whose own process cannot: it was stopped, or lost.

    Args:
      uri: tracking URI.
      run_id: the run's.
      state: MLflow's FINISHED, FAILED or KILLED.
      tags: that say why.
    """
    from mlflow import MlflowClient

    Tracker(uri, run_id).tags(tags)
    MlflowClient(tracking_uri=uri).set_terminated(run_id, state)


def tell_trials(run: Tracker, rows: Sequence[TrialRow], metric: str) -> None:
    """Give a search's run its trials, the best one first: a table, a picture, numbers of each state, and links."""
    from mlflow import MlflowClient

    best = rows[0]
    run.document("trials.json", _table(rows, metric))
    counts = {f"trials_{state}": sum(row.state == state for row in rows) for state in ("finished", "stopped", "failed")}
    run.metrics({**counts, **({metric: best.score} if best.score is not None else {})})
    run.picture("trials", trials_picture(rows, metric), 0)
    seen = MlflowClient(tracking_uri=run.uri).get_run(run.run_id)
    info, note = seen.info, seen.data.tags.get(NOTE, "")
    found = [row.run_id for row in rows if row.run_id]
    compare = compare_address(info.experiment_id, found[:_MOST_COMPARED])
    note = with_link(note, "compare", link_to(f"{len(rows)} trials side by side", compare))
    if best.run_id is not None:
        run.tags({"tessera.best_trial": best.run_id})
        address = run_address(info.experiment_id, best.run_id)
        note = with_link(note, f"best of {len(rows)} trials:", link_to(best.name, address))
    run.tags({NOTE: note})


def _table(rows: Sequence[TrialRow], metric: str) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    data = [[row.name, row.state, row.score, *(row.point.get(key) for key in keys), row.run_id] for row in rows]
    return {"columns": ["trial", "state", metric, *keys, "run_id"], "data": data}


def compare_address(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Fragment of the page that compares runs, with their parallel coordinates.

    >>> compare_address("1", ["ab12", "cd34"])
    '#/compare-runs?runs=%5B%22ab12%22%2C%22cd34%22%5D&experiments=%5B%221%22%5D'
    """

    def listed(ids: Sequence[str]) -> str:
        return quote(json.dumps(list(ids), separators=(",", ":")), safe="")

    return f"#/compare-runs?runs={listed(run_ids)}&experiments={listed([experiment_id])}"


def trials_picture(rows: Sequence[TrialRow], metric: str) -> NDArray[np.uint8]:
    """Score over each searched setting, uint8 (y, x, 3): finished ones full, stopped ones hollow, the first ringed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    figure = Figure(figsize=(1 + 3.5 * len(keys), 4), dpi=100, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for key, panel in zip(keys, panels, strict=True):
        _scatter(panel, [row for row in rows if row.score is not None], key)
    panels[0].set_ylabel(metric)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _scatter(panel: Any, rows: Sequence[TrialRow], key: str) -> None:
    values = [row.point[key] for row in rows]
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    for row, value in zip(rows, values, strict=True):
        hollow = {"facecolors": "none"} if row.state == "stopped" else {}
        panel.scatter(value if plain else str(value), row.score, edgecolors="tab:blue", color="tab:blue", **hollow)
        if row is rows[0]:
            panel.scatter(value if plain else str(value), row.score, s=150, facecolors="none", edgecolors="tab:red")
    if plain and values and min(values) > 0 and max(values) >= 30 * min(values):
        panel.set_xscale("log")
    panel.set_xlabel(key)
