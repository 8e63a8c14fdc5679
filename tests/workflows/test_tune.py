"""A search end to end on real Ray Tune, Ray Train, TensorFlow and MLflow, with the tiniest networks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from bundles import make_bundle
from tessera.cli.main import parse
from tessera.images.augment import Augmentation
from tessera.model.bundle import load_contract
from tessera.model.spec import UnetSpec
from tessera.settings.keys import changed
from tessera.settings.train import AnnotatedSections, DataSettings, ScheduleSettings, TrainSettings
from tessera.settings.tune import EarlyStopping, TuneSettings
from tessera.tracking.runs import tracking_uri
from tessera.workflows.plain import plain
from tessera.workflows.training_plan import prepared
from tessera.workflows.trials import Record, Trial, read_record, run_trial, write_record
from tessera.workflows.tune import TuneResult, anywhere, default_name, trial_folder, tune
from volumes import mask, put_volume

SHAPE = (3, 48, 48)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    folder = tmp_path_factory.mktemp("volumes")
    labels = mask(SHAPE)
    noise = np.random.default_rng(3).standard_normal(SHAPE)
    raw = put_volume(folder / "raw.zarr", np.clip(90 + labels / 3 + 20 * noise, 0, 255).astype(np.uint8))
    cells = put_volume(folder / "labels.zarr", labels)
    return DataSettings(
        [AnnotatedSections(str(raw), str(cells), "0-1")], [AnnotatedSections(str(raw), str(cells), "2")]
    )


def _settings(data: DataSettings, **changes: Any) -> TuneSettings:
    train = TrainSettings(
        data=data,
        network=UnetSpec(filters=2, depth=2, padding="same", batch_norm=True),
        augmentation=Augmentation(flips=True),
        schedule=ScheduleSettings(steps=4, batch=2, crop_px=16, log_every=2, checkpoint_every=2),
    )
    return replace(TuneSettings(_search(2, 3), train, name="tiny", trials=2, concurrent=2, seed=6), **changes)


def _search(*filters: int) -> dict[str, Any]:
    """A crop of 17 px fits no network of depth 2, which only the trial that draws it can tell."""
    return {"network.filters": {"grid": list(filters)}, "schedule.crop_px": {"int": [16, 17]}}


def _client(home: Path) -> MlflowClient:
    return MlflowClient(tracking_uri(None, home))


def test_a_search_from_trials_to_settings_that_can_be_trained(
    ray_session: None, data: DataSettings, home: Path
) -> None:
    """One story of one trial that trains and one that cannot, because a trial costs an import of TensorFlow."""
    settings = _settings(data)
    assert [point["schedule.crop_px"] for point in settings.points] == [16, 17]
    result = tune(settings)
    assert [(record.state, record.step) for record in result.records] == [("finished", 4), ("failed", 0)]
    assert result.winner == 0
    _assert_the_runs_are_nested(result, home)
    _assert_the_best_can_be_trained(settings, result)
    _assert_the_same_command_runs_nothing_again(settings, result, home)
    with pytest.raises(FileExistsError, match=r"search tiny was begun with other settings.*Give another --name"):
        tune(replace(settings, seed=2))


def _assert_the_runs_are_nested(result: TuneResult, home: Path) -> None:
    client = _client(home)
    assert client.search_registered_models() == [], "a search registers nothing"
    for record, point in zip(result.records, result.points, strict=True):
        child = client.get_run(record.run_id)
        assert child.data.tags["mlflow.parentRunId"] == result.run_id
        assert child.info.status == record.state.upper()
        assert {key: child.data.params[key] for key in point} == {key: str(value) for key, value in point.items()}
    run = client.get_run(result.run_id)
    best = result.records[result.winner]
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {
        "trials_finished": 1,
        "trials_stopped": 0,
        "trials_failed": 1,
        "val_v_rand": pytest.approx(best.score),
    }
    assert run.data.tags["tessera.best_trial"] == best.run_id
    assert (
        best.run_id in run.data.tags["mlflow.note.content"] and "compare-runs" in run.data.tags["mlflow.note.content"]
    )
    assert {"trials.json", "trials.png"} <= {file.path for file in client.list_artifacts(result.run_id)}


def _assert_the_best_can_be_trained(settings: TuneSettings, result: TuneResult) -> None:
    _, best = parse(["train", "--config", str(result.best)])
    assert best == changed(settings.train, result.points[result.winner])
    score = result.records[result.winner].score
    header = result.best.read_text().split("\nname")[0]
    assert f"val_v_rand {score:.4f}" in header and result.run_id not in header


def _assert_the_same_command_runs_nothing_again(settings: TuneSettings, result: TuneResult, home: Path) -> None:
    folder = home / "searches" / "tiny"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("progress.jsonl")}
    runs = len(_client(home).search_runs(["1"]))
    again = tune(settings)
    assert len(_client(home).search_runs(["1"])) == runs == 3, "one for the search, one for each trial"
    assert (again.run_id, again.winner) == (result.run_id, result.winner)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("progress.jsonl")} == before
    assert not list(folder.rglob("weights.keras")), "a search leaves scores, not weights"


def _artifact(home: Path, run_id: str, name: str) -> str:
    return Path(_client(home).download_artifacts(run_id, name)).read_text()


@pytest.mark.parametrize(("metric", "winner"), [("val_v_rand", 2), ("val_pixel_error", 0)])
def test_the_best_is_the_best_of_those_that_finished(
    data: DataSettings, home: Path, metric: Literal["val_v_rand", "val_pixel_error"], winner: int
) -> None:
    """All ended in an earlier try, so that nothing is left to run."""
    settings = _settings(data, search={"network.filters": {"grid": [2, 3, 4, 5]}}, trials=0, metric=metric)
    scores = {"finished": [0.2, 0.3, 0.4], "stopped": [0.9 if settings.mode == "max" else 0.1]}
    ends = [(state, score) for state, told in scores.items() for score in told]
    for index, (state, score) in enumerate(ends):
        write_record(trial_folder(home / "searches" / "tiny", index), Record(state, score, 4))  # type: ignore[arg-type]
    result = tune(settings)
    assert result.winner == winner
    assert yaml.safe_load(result.best.read_text())["network"]["filters"] == winner + 2
    table = json.loads(_artifact(home, result.run_id, "trials.json"))
    assert table["data"][0][0] == f"tiny-{winner:03d}" and len(table["data"]) == 4
    assert table["data"][-1][1] == "stopped"


def test_a_search_of_which_no_trial_finished_says_why(data: DataSettings, home: Path) -> None:
    settings = _settings(data, search=_search(2, 3), seed=9)
    assert [point["schedule.crop_px"] for point in settings.points] == [17, 17]
    with pytest.raises(RuntimeError, match=r"none of 2 trials finished: schedule\.crop_px: crop=17 px is illegal"):
        tune(settings)
    assert not (home / "searches" / "tiny" / "best.yaml").exists()


def test_a_name_is_kept_by_the_same_search_however_many_trials_it_has(data: DataSettings) -> None:
    settings = _settings(data, name=None)
    assert default_name(settings) == default_name(replace(settings, trials=9, concurrent=1))
    assert default_name(settings) != default_name(replace(settings, seed=2))


def test_every_trial_starts_from_the_same_weights_wherever_it_runs(
    data: DataSettings, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "parent")
    monkeypatch.chdir(tmp_path)
    spec = load_contract(tmp_path / "parent").network
    ready = prepared(replace(_settings(data).train, network=spec, start_from="parent"))
    assert anywhere(ready, "sqlite:///x.db").start_from == str(tmp_path / "parent")
    assert ready.parent is not None
    registered = replace(ready, parent=replace(ready.parent, name="models:/lab/3"))
    assert anywhere(registered, "sqlite:///x.db").start_from == "models:/lab/3"
    settings = anywhere(replace(ready, parent=None), "sqlite:///x.db")
    assert (settings.start_from, settings.tracking.uri) == (None, "sqlite:///x.db")


def test_a_trial_that_ended_before_reports_again_and_trains_no_more(data: DataSettings, tmp_path: Path) -> None:
    from tessera.engine.placement import ClusterSize

    folder = trial_folder(tmp_path / "tiny", 0)
    write_record(folder, Record("stopped", 0.5, 2))
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "val_v_rand": 0.5}, {"step": 4, "val_v_rand": 0.75}]
    told: list[Any] = []
    # The last line is cut short, as by a kill.
    (folder / "progress.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines)[:-3])
    trial = Trial(_settings(data).train, folder, tmp_path, {}, ClusterSize(2, 0, 2), "val_v_rand")
    run_trial(trial, told.append)
    assert told == [lines[1]]
    assert read_record(folder) == Record("stopped", 0.5, 2)


@pytest.mark.slow
def test_a_killed_search_goes_on_with_what_is_left(data: DataSettings, home: Path, tmp_path: Path) -> None:
    settings = _settings(
        data,
        search=_search(2, 3, 4),
        trials=3,
        concurrent=1,
        early_stopping=EarlyStopping("asha", grace_steps=2, factor=2),
    )
    config = tmp_path / "tune.yaml"
    config.write_text(yaml.safe_dump(plain(settings)))
    command = [sys.executable, "-m", "tessera.cli", "tune", "--config", str(config)]
    environment = {**os.environ, "TESSERA_HOME": str(home)}
    first, *others = [i for i, point in enumerate(settings.points) if point["schedule.crop_px"] == 16]
    folders = [trial_folder(home / "searches" / "tiny", i) for i in (first, *others)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as killed:
        _wait(lambda: (folders[1] / "progress.jsonl").exists() or killed.poll() is not None)
        killed.send_signal(signal.SIGKILL)
    finished = (folders[0] / "trial.json").read_bytes()
    begun = [json.loads((folder / "run.json").read_text())["run_id"] for folder in folders]
    progress = (folders[0] / "progress.jsonl").read_bytes()
    assert not (folders[1] / "trial.json").exists()

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 failed" in done.stdout
    assert (folders[0] / "trial.json").read_bytes() == finished
    assert (folders[0] / "progress.jsonl").read_bytes() == progress, "a finished trial is not run again"
    records = [read_record(folder) for folder in folders]
    assert [record.run_id for record in records if record] == begun, "what was cut goes on in its own run"
    assert all(record.state in ("finished", "stopped") for record in records if record)
    runs = _client(home).search_runs(["1"])
    assert sum("mlflow.parentRunId" not in run.data.tags for run in runs) == 1, "one search, one run"


def _wait(until: Any) -> None:
    deadline = time.monotonic() + 400
    while not until():
        assert time.monotonic() < deadline, "the search did not come so far"
        time.sleep(0.2)
