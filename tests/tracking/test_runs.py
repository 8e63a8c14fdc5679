"""Runs on a real SQLite store: what a person later finds there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tessera.tracking.pages import MAX_NOTE_LENGTH, NOTE, VIEWS, run_address
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


def _description(uri: str, run: Tracker) -> str:
    return str(MlflowClient(uri).get_run(run.run_id).data.tags[NOTE])


def test_descriptions_link_to_the_other_run_once(uri: str, home: Path) -> None:
    with _run(uri, home) as training:
        pass
    with _run(uri, home) as prediction:
        for _ in range(2):  # a resumed job links again
            prediction.link("trained_by", training.run_id)
    one, other = _description(uri, training), _description(uri, prediction)
    assert one.count(f"- used by [a run]({run_address('1', prediction.run_id)})") == 1
    assert other.count(f"- trained by [a run]({run_address('1', training.run_id)})") == 1


def test_what_a_person_wrote_in_a_description_stays(uri: str, home: Path) -> None:
    with _run(uri, home) as training:
        training.tags({NOTE: "The best so far."})
    with _run(uri, home) as prediction:
        prediction.link("trained_by", training.run_id)
    assert _description(uri, training).startswith("The best so far.\n")
    assert "used by" in _description(uri, training)


def test_a_full_description_refuses_no_job(uri: str, home: Path) -> None:
    with _run(uri, home) as training:
        training.tags({NOTE: "x" * MAX_NOTE_LENGTH})
    with _run(uri, home) as prediction:
        prediction.link("trained_by", training.run_id)
    assert _description(uri, training) == "x" * MAX_NOTE_LENGTH
    assert prediction.run_id in MlflowClient(uri).get_run(training.run_id).data.tags.values(), "the tags hold it"


def test_an_experiment_gets_its_views_and_keeps_what_a_person_changed(uri: str, home: Path) -> None:
    client = MlflowClient(uri)
    made = client.create_experiment("tests", tags={NOTE: "Ours."})
    with _run(uri, home):
        pass
    tags = client.get_experiment(made).tags
    assert tags.pop(NOTE) == "Ours."
    views = {json.loads(value)["name"] for key, value in tags.items() if key.startswith("mlflow.sharedViewState.")}
    assert views == {view.name for view in VIEWS}
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_bundle_in_a_folder_is_no_registered_model(uri: str, home: Path, tmp_path: Path) -> None:
    with _run(uri, home) as prediction:
        prediction.uses_model(str(tmp_path / "bundle"))
    assert not MlflowClient(uri).get_run(prediction.run_id).inputs.model_inputs


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
    assert run_address("1", run.run_id, "artifacts/validation.png") in _description(uri, run)


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
