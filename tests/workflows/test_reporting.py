"""A batch run in MLflow: its figures over time, its links, and a server that goes away in the middle."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from bundles import make_bundle
from mlflow_server import MlflowServer
from tessera import __version__
from tessera.settings.common import TrackingSettings
from tessera.settings.predict import PredictSettings
from tessera.settings.segment import SegmentSettings
from tessera.storage.ledger import read_rows
from tessera.storage.volumes import open_volume
from tessera.tracking.models import register_bundle
from tessera.tracking.runs import tracked_run, tracking_uri
from tessera.workflows import components as workflow
from tessera.workflows import live
from tessera.workflows.predict import KIND, predict
from tessera.workflows.segment import segment
from volumes import grey, put_volume


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> SegmentSettings:
    """16 blocks to segment, serially."""
    monkeypatch.setattr(live, "LOOK_S", 0.01)
    monkeypatch.setattr(live, "POINT_S", 0.05)
    voxels = np.random.default_rng(0).integers(0, 256, (4, 64, 64), dtype=np.uint8)
    membrane = put_volume(home / "membrane.zarr", voxels, kind=KIND, threshold=0.5)
    layout: dict[str, Any] = {"chunk": (1, 32, 32), "shard": (1, 32, 32)}
    return SegmentSettings(volume=str(membrane), output=str(home / "cells.zarr"), engine="serial", **layout)


def _history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in MlflowClient(uri).get_metric_history(run_id, name)]


def test_rates_retries_and_failures_are_metrics_over_the_blocks_done(
    settings: SegmentSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = workflow.cells_of, Counter[str]()

    def slow_and_unreliable(*given: Any) -> Any:
        calls["cells_of"] += 1
        live.time.sleep(0.03)
        if calls["cells_of"] == 20:
            raise OSError("the network hiccuped")
        return real(*given)

    monkeypatch.setattr(workflow, "cells_of", slow_and_unreliable)
    segment(settings)
    attributes, uri = open_volume(home / "cells.zarr").attributes, tracking_uri(None, home)
    run_id = attributes["run_id"]
    for stage, retries in (("faces", 0), ("progress", 1)):
        blocks = _history(uri, run_id, f"{stage}/blocks_per_second")
        steps = [step for step, _ in blocks]
        assert len(steps) >= 3 and steps == sorted(steps) and steps[-1] == 16, steps
        assert all(0 < rate < 34 for _, rate in blocks)
        voxels = _history(uri, run_id, f"{stage}/voxels_per_second")
        assert [rate for _, rate in voxels] == pytest.approx([32 * 32 * rate for _, rate in blocks])
        assert _history(uri, run_id, f"{stage}/retries")[-1] == (16, retries)
        assert _history(uri, run_id, f"{stage}/failures")[-1] == (16, 0)
    assert MlflowClient(uri).get_run(run_id).data.metrics["blocks"] == 16
    assert attributes["version"] == __version__ and attributes["settings"]["output"] == str(home / "cells.zarr")


def test_a_prediction_s_run_leads_to_the_model_version_and_the_run_that_trained_it(home: Path) -> None:
    uri = tracking_uri(None, home)
    with tracked_run(uri, "tests", "training", {}, {}, home) as training:
        contract = make_bundle(home / "bundle") / "contract.json"
        told = json.loads(contract.read_text())
        contract.write_text(json.dumps(told | {"training": {"run_id": training.run_id}}))
        model = register_bundle(training, contract.parent, "net", [])
    put_volume(home / "raw.zarr", grey((1, 64, 64)))
    predict(
        PredictSettings(
            volume=str(home / "raw.zarr"), model=model, output=str(home / "out.zarr"), tile=(1, 32, 32), engine="serial"
        )
    )
    attributes, client = open_volume(home / "out.zarr").attributes, MlflowClient(uri)
    run, version = client.get_run(attributes["run_id"]), client.get_model_version("net", "1")
    assert run.data.tags["tessera.model"] == model == attributes["model"]["name"] == "models:/net/1"
    assert run.data.tags["tessera.trained_by"] == training.run_id == attributes["model"]["training_run_id"]
    assert [f"models:/{used.model_id}" for used in run.inputs.model_inputs] == [version.source]
    assert client.get_run(training.run_id).data.tags[f"tessera.trained_by_of.{run.info.run_id[:8]}"] == run.info.run_id
    assert attributes["settings"]["tile"] == [1, 32, 32] and attributes["version"] == __version__
    assert _history(uri, run.info.run_id, "progress/failures") == [(1, 0)]


@pytest.mark.slow
def test_a_server_that_goes_away_stops_no_job_and_is_told_all_of_it_later(
    settings: SegmentSettings, home: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    server, real = MlflowServer(tmp_path), workflow.cells_of
    server.start()

    def without_a_server(*given: Any) -> Any:
        server.kill()
        return real(*given)

    monkeypatch.setattr(workflow, "cells_of", without_a_server)
    try:
        server.wait()
        settings = replace(settings, tracking=TrackingSettings(uri=server.uri))
        told = r"cells.zarr is done, but MLflow has not all of it: .* \d+ reports are kept in .*computes nothing"
        with pytest.raises(RuntimeError, match=told):
            segment(settings)
        attributes = open_volume(home / "cells.zarr").attributes
        assert attributes["complete"] is True
        monkeypatch.setattr(workflow, "cells_of", None)  # nothing is computed
        server.start()
        server.wait()
        segment(settings)
        run = MlflowClient(server.uri).get_run(attributes["run_id"])
        assert run.info.status == "FINISHED"
        assert _history(server.uri, attributes["run_id"], "progress/retries")[-1] == (16, 0)
        assert run.data.metrics["blocks_computed"] == 16
    finally:
        server.kill()
    assert Counter(row.block for row in read_rows(home / "cells.zarr")) == Counter(range(16))
