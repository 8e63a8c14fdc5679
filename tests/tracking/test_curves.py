"""Scores against the threshold: the same names and steps in every run, so that MLflow draws runs over one axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tessera.tracking.curves import AGGLOMERATION, DRAWN, draw_curve, log_threshold_curve
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri

ROWS = [{"threshold": t / 10, **dict.fromkeys(DRAWN, 0.9 - (t - 4) ** 2 / 100)} for t in range(10)]


@pytest.fixture
def run(home: Path, empty_database: Path) -> Tracker:
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    with tracked_run(tracking_uri(None, home), "tests", "a run", {}, {}, home) as run:
        pass
    return run


def _points(run: Tracker, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(run.uri).get_metric_history(run.run_id, f"by_threshold/{name}")
    return [(metric.step, metric.value) for metric in history]


def test_every_score_is_a_curve_over_the_threshold_in_percent(run: Tracker) -> None:
    log_threshold_curve(run, ROWS, 0.4)
    for name in DRAWN:
        assert _points(run, name) == [(round(100 * row["threshold"]), row[name]) for row in ROWS]


def test_a_threshold_between_two_steps_is_in_the_table_alone(run: Tracker, tmp_path: Path) -> None:
    between = {"threshold": 0.404, **dict.fromkeys(DRAWN, 0.5)}
    log_threshold_curve(run, [*ROWS[:5], between, *ROWS[5:]], 0.404)
    assert [step for step, _ in _points(run, "v_rand")] == list(range(0, 100, 10))
    table = Path(MlflowClient(run.uri).download_artifacts(run.run_id, "threshold_curve.csv", str(tmp_path)))
    marked = [line.split(",")[0] for line in table.read_text().splitlines() if line.endswith("yes")]
    assert marked == ["0.404"]


def test_logged_again_by_a_resumed_job_it_has_no_point_twice(run: Tracker) -> None:
    for _ in range(2):
        log_threshold_curve(run, ROWS, 0.4)
    assert len(_points(run, "v_rand")) == len(ROWS)
    files = [file.path for file in MlflowClient(run.uri).list_artifacts(run.run_id)]
    assert {"threshold_curve.csv", "threshold_curve.png"} <= set(files)


def test_the_picture_marks_the_frozen_threshold_where_it_is() -> None:
    def line_at(frozen: float | None) -> list[int]:
        """Columns with a dashed black line all the way down the upper half's middle."""
        dark = (draw_curve(ROWS, frozen)[150:280] < 80).all(axis=2)
        return [int(x) for x in np.flatnonzero(dark.mean(axis=0) > 0.5) if 100 < x < 700]

    left, right = line_at(0.3), line_at(0.6)
    assert line_at(None) == []
    assert left and right and left[0] < right[0]
    span = 700 / 1.04  # pixels of a threshold from 0 to 1, about
    assert (right[0] - left[0]) == pytest.approx(0.3 * span, rel=0.1)


def test_agglomerations_have_curves_of_their_own(run: Tracker) -> None:
    rows = [{"threshold": t / 10, **dict.fromkeys(AGGLOMERATION.drawn, t / 5)} for t in range(10)]
    log_threshold_curve(run, rows, 0.2, chart=AGGLOMERATION)
    for name in ("voi", "voi_split", "voi_merge", "adapted_rand_error_cremi", "cremi_score"):
        assert _points(run, name) == [(10 * t, t / 5) for t in range(10)]
    assert not _points(run, "v_rand")
