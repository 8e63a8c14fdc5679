"""A scan scores each threshold as segmenting at it would, from one count of overlaps and the stored graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from tessera.images.quantise import encode
from tessera.metrics.contingency import count_overlaps
from tessera.metrics.instances import finish
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.segment import AgglomerationSettings, SegmentSettings, WatershedSettings
from tessera.storage.volumes import open_volume
from tessera.tracking.runs import tracking_uri
from tessera.workflows import array_stages
from tessera.workflows.evaluate import evaluate
from tessera.workflows.predict import KIND
from tessera.workflows.segment import segment
from volumes import put_volume, walls

SHAPE = (3, 96, 96)
THRESHOLDS = [0.0, 0.3, 0.5, 1.0]


def _cells(folder: Path, threshold: float) -> Path:
    layout: dict[str, Any] = {"chunk": (1, 48, 48), "shard": (1, 48, 48), "engine": "serial", "threshold": 0.5}
    settings = SegmentSettings(
        str(folder / "p.zarr"),
        str(folder / f"cells-{threshold}.zarr"),
        method="watershed",
        watershed=WatershedSettings(halo_px=48),
        agglomeration=AgglomerationSettings(threshold),
        fragments=str(folder / "fragments.zarr"),
        **layout,
    )
    return Path(str(segment(settings)))


def test_each_threshold_scores_as_the_cells_that_it_gives(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_volume(home / "p.zarr", encode(walls(SHAPE), "uint8"), kind=KIND)
    made = {threshold: open_volume(_cells(home, threshold)).array[:] for threshold in THRESHOLDS}
    truth = made[0.5].copy()
    truth[:, :20] = 2**64 - 1
    put_volume(home / "truth.zarr", truth, kind="labels")
    places = {"cells": str(home / "cells-0.3.zarr"), "labels": str(home / "truth.zarr")}
    settings = EvaluateSettings(**places, thresholds=THRESHOLDS, engine="serial")
    found = evaluate(settings)
    for row, threshold in zip(found["by_threshold"], THRESHOLDS, strict=True):
        expected = finish(count_overlaps(truth[:, 20:], made[threshold][:, 20:]))
        assert row["threshold"] == threshold
        assert {name: row[name] for name in expected.metrics} == pytest.approx(expected.metrics, abs=1e-9)
    assert found["voi"] == found["by_threshold"][1]["voi"], "the cells' own score stands beside the scan"
    assert found["best_threshold"] == 0.5 and found["by_threshold"][2]["voi"] == 0
    client = MlflowClient(tracking_uri(None, home))
    run = client.search_runs([client.get_experiment_by_name("tessera").experiment_id], max_results=1)[0]
    history = client.get_metric_history(run.info.run_id, "by_threshold/voi")
    assert [(point.step, point.value) for point in history] == [
        (round(100 * row["threshold"]), row["voi"]) for row in found["by_threshold"]
    ]
    monkeypatch.setattr(array_stages, "save_arrays", None)
    assert evaluate(settings) == found, "a second scan counts nothing"


def test_cells_that_were_not_agglomerated_have_no_thresholds(home: Path) -> None:
    put_volume(home / "volumes" / "ids.zarr", np.ones((2, 8, 8), np.uint64), kind="cells")
    with pytest.raises(ValueError, match=r"ids\.zarr was not agglomerated.*--method watershed, or leave --thresholds"):
        evaluate(EvaluateSettings(cells="ids", labels="ids", thresholds=[0.5]))


@pytest.mark.parametrize("changes", [{"volume": "p"}, {"thresholds": [1.5]}])
def test_thresholds_are_probabilities_for_cells_alone(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"thresholds=\[.*\]: these are probabilities, at which cells alone"):
        EvaluateSettings(**{"cells": "c", "labels": "l", "thresholds": [0.5], **changes})
