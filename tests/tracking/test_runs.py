"""Runs on a real SQLite store: what a person later finds there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tessera.tracking.pictures import contact_sheet, png_bytes
from tessera.tracking.runs import Tracker, fetch_artifacts, tracked_run, tracking_uri


@pytest.fixture
def uri(home: Path, empty_database: Path) -> str:
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    return tracking_uri(None, home)


def _run(uri: str, home: Path, **more: str):  # type: ignore[no-untyped-def]
    return tracked_run(uri, "tests", "a run", {"network": {"filters": 4}}, {"kind": "test"}, home, **more)


def test_a_run_that_ends_is_finished_with_its_parameters_and_metrics(uri: str, home: Path) -> None:
    with _run(uri, home) as run:
        run.metrics({"loss": 0.5, "rate": 1e-3}, step=7)
        run.dataset("/volumes/raw.zarr", "f" * 64, "training")
        run.document("facts.json", {"a": 1})
    stored = MlflowClient(uri).get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"network.filters": "4"}
    assert stored.data.metrics == {"loss": 0.5, "rate": 1e-3}
    assert stored.inputs.dataset_inputs[0].dataset.name == "raw.zarr"
    assert (home / "mlartifacts").exists(), "artifacts lie under TESSERA_HOME, not in the current folder"
    assert not Path("mlruns").exists()


def test_a_run_that_raises_is_failed_and_says_why(uri: str, home: Path) -> None:
    with pytest.raises(ValueError, match="no such thing"), _run(uri, home) as run:
        raise ValueError("no such thing")
    stored = MlflowClient(uri).get_run(run.run_id)
    assert stored.info.status == "FAILED"
    assert stored.data.tags["tessera.error"] == "no such thing"


def test_a_resumed_run_is_the_same_run(uri: str, home: Path) -> None:
    with _run(uri, home) as first:
        pass
    with _run(uri, home, resume=first.run_id) as again:
        assert again.run_id == first.run_id
    with _run(uri, home, resume="0" * 32) as other:
        assert other.run_id != first.run_id, "an id that this server never saw begins a run of its own"


def test_links_can_be_followed_both_ways(uri: str, home: Path) -> None:
    with _run(uri, home) as training:
        pass
    with _run(uri, home) as prediction:
        prediction.link("trained_by", training.run_id)
        prediction.link("seen_by", "0" * 32)
    client = MlflowClient(uri)
    assert client.get_run(prediction.run_id).data.tags["tessera.trained_by"] == training.run_id
    assert prediction.run_id in client.get_run(training.run_id).data.tags.values()


def test_pictures_are_logged_at_their_step(uri: str, home: Path) -> None:
    rows = [{"raw": np.zeros((20, 30), np.uint8), "probability": np.ones((20, 30), np.float32)}]
    sheet = contact_sheet(rows, ["section 3"])
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    assert png_bytes(sheet).startswith(b"\x89PNG")
    with _run(uri, home) as run:
        run.picture("validation", sheet, step=5)
    names = [file.path for file in MlflowClient(uri).list_artifacts(run.run_id, "images")]
    assert any("validation" in name and "5" in name for name in names), names


def test_a_model_that_is_not_registered_is_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="models:/nothing/1 is not in the registry"):
        fetch_artifacts(uri, "models:/nothing/1", tmp_path)


def test_a_uri_that_no_store_speaks_is_refused(home: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"tracking\.uri=nonsense://x cannot be used.*Try null"),
        _run("nonsense://x", home),
    ):
        pass


def test_a_tracker_is_a_plain_value() -> None:
    import pickle

    tracker = Tracker("sqlite:////nowhere.db", "abc")
    assert pickle.loads(pickle.dumps(tracker)) == tracker
