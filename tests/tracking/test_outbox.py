"""Reports that wait for a tracking server: a real server, killed and started again."""

from __future__ import annotations

import logging
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from mlflow_server import MlflowServer
from tessera.tracking.outbox import Outbox, UntakenError
from tessera.tracking.runs import Tracker, check_tracking, tracked_run, tracking_uri


@pytest.fixture
def server(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = MlflowServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def run(home: Path, empty_database: Path) -> Iterator[Tracker]:
    shutil.copy(empty_database, home / "mlflow.db")
    with tracked_run(tracking_uri(None, home), "tests", "a run", {}, {}, home) as run:
        yield run


def _history(run: Tracker, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(run.uri).get_metric_history(run.run_id, name)]


def _until(true: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_reports_survive_an_outage_and_are_handed_in_when_the_server_is_back(
    server: MlflowServer, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tessera")
    server.wait()
    with tracked_run(server.uri, "tests", "a run", {}, {}, home) as run:
        outbox = Outbox(run, tmp_path / "outbox")
        with outbox.handing_in():
            outbox.metrics({"loss": 3.0}, step=1)
            _until(lambda: not outbox.waiting())
            server.kill()
            outbox.metrics({"loss": 2.0}, step=2)
            outbox.picture("validation", np.zeros((4, 4, 3), np.uint8), step=2)
            outbox.metrics({"loss": 1.0}, step=3)
            _until(lambda: "the work goes on" in caplog.text)
            with pytest.raises(UntakenError, match=rf"MLflow at {server.uri} does not take .* 3 reports are kept in"):
                pickle.loads(pickle.dumps(outbox)).hand_in()
            with pytest.raises(ConnectionError, match=rf"MLflow at {server.uri} does not answer.*Try null"):
                check_tracking(server.uri)
            server.start()
            _until(lambda: not outbox.waiting())
            _until(lambda: "answers again" in caplog.text)
        assert _history(run, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert "validation.png" in [file.path for file in MlflowClient(run.uri).list_artifacts(run.run_id)]
    assert caplog.text.count("does not take") == 1, "an outage is told once"


def test_what_fails_while_the_server_is_away_is_told_and_not_the_outage(
    server: MlflowServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.wait()
    with (
        pytest.raises(ValueError, match="the work's own error"),
        tracked_run(server.uri, "tests", "a run", {}, {}, home),
    ):
        server.kill()
        raise ValueError("the work's own error")
    assert "could not be told that run" in caplog.text


def test_handing_in_twice_keeps_one_value(run: Tracker, tmp_path: Path) -> None:
    """As after a kill between the server's answer and the entry's removal."""
    outbox = Outbox(run, tmp_path / "outbox")
    outbox.metrics({"loss": 1.0}, step=1)
    entry = outbox.waiting()[0]
    kept = entry.read_bytes()
    outbox.hand_in()
    entry.write_bytes(kept)
    outbox.hand_in()
    assert _history(run, "loss") == [(1, 1.0)]
    assert not outbox.waiting()


def test_values_keep_the_time_at_which_they_were_told(run: Tracker, tmp_path: Path) -> None:
    outbox = Outbox(run, tmp_path / "outbox")
    before = time.time() * 1000
    outbox.metrics({"loss": 1.0}, step=1)
    told = time.time() * 1000
    time.sleep(0.05)
    outbox.hand_in()
    (metric,) = MlflowClient(run.uri).get_metric_history(run.run_id, "loss")
    assert before - 1 <= metric.timestamp <= told
