"""MLflow's pages as a person sees them: a real server, a real browser, and runs that the product's own calls wrote."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import Browser, find_chromium, running_chromium
from bundles import make_bundle
from tessera.tracking.models import register_bundle
from tessera.tracking.pages import VIEWS, run_address
from tessera.tracking.runs import Tracker, tracked_run

CHROMIUM = find_chromium()
START_SECONDS = 300
PICTURE_PX = (211, 577)
NAME = "attributes.`Run Name`"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome on PATH: MLflow's pages were not looked at"
)


@dataclass(frozen=True)
class Lab:
    """A home with one model's whole story, served.

    Attributes:
      server: the server's address.
      runs: id by the workflow that the run is of.
    """

    server: str
    runs: dict[str, str]

    def at(self, fragment: str) -> str:
        """The whole address of a page."""
        return f"{self.server}/{fragment}"

    def run(self, workflow: str, page: str = "") -> str:
        """Fragment of a run's page."""
        return run_address("1", self.runs[workflow], page)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Lab]:
    """`mlflow server` on a database that the product's own calls fill while the server starts."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(empty_database, folder / "mlflow.db")
    with _server(folder) as wait_until_healthy:
        runs = _fill(_database(folder), folder)
        yield Lab(wait_until_healthy(), runs)


def _database(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"  # whatever MLflow's environment variable says


def _fill(uri: str, folder: Path) -> dict[str, str]:
    """A training, and the prediction, segmentation and evaluation that follow from it: id by workflow."""
    with _run(uri, folder, "train", "isbi-choose", {"network": {"filters": 16, "depth": 4}, "seed": 2015}) as training:
        _log_training(training)
        training.dataset("/volumes/isbi-raw.zarr", "8ff5a5ffcd56de1f" * 4, "training")
        model = register_bundle(training, make_bundle(folder / "bundle"), "isbi2012-unet", ["numpy"])
        training.tags({"tessera.model": model})
    with _run(uri, folder, "predict", "predict isbi_membranes_2.zarr", {"volume": "isbi-raw"}) as prediction:
        prediction.metrics({"blocks": 8, "blocks_failed": 0, "seconds": 24.5, "megavoxels_per_second": 0.32})
        prediction.uses_model(model)
        prediction.link("trained_by", training.run_id)
    with _run(uri, folder, "segment", "segment isbi-cells.zarr", {}) as segmentation:
        segmentation.metrics({"cells": 4272})
        segmentation.link("predicted_by", prediction.run_id)
    with _run(uri, folder, "evaluate", "evaluate isbi-membranes.zarr", {}) as evaluation:
        evaluation.metrics({"v_rand_frozen": 0.9742, "v_info_frozen": 0.9760, "v_rand_maximum": 0.9778})
        evaluation.link("predicted_by", prediction.run_id)
    made = {"train": training, "predict": prediction, "segment": segmentation, "evaluate": evaluation}
    return {workflow: run.run_id for workflow, run in made.items()}


def _run(uri: str, home: Path, workflow: str, name: str, params: dict[str, Any]) -> Any:
    return tracked_run(uri, "tessera", name, params, {"tessera.workflow": workflow}, home)


def _log_training(run: Tracker) -> None:
    for step in range(20, 301, 20):
        rate = 0.001 * (1 + np.cos(np.pi * step / 300))
        run.metrics({"loss": 0.4 + 20 / step, "learning_rate": rate, "samples_per_second": 2.5 + step % 3}, step)
    for step, v_rand in ((100, 0.9402), (200, 0.9651), (300, 0.9573)):
        run.metrics({"val_v_rand": v_rand, "val_v_info": 0.9797, "val_threshold": 0.8}, step)
        run.picture("validation", np.full((*PICTURE_PX, 3), step // 2, np.uint8), step)


@contextmanager
def _server(folder: Path) -> Iterator[Callable[[], str]]:
    """`mlflow server` on loopback; gives a function that waits until it answers and returns its address."""
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", _database(folder), "--default-artifact-root", folder.as_uri()]
    # Neither reports of its use nor a queue for judging chat agents belong to looking at runs.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *stores], cwd=folder, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield partial(_wait_until_healthy, process, f"http://127.0.0.1:{port}", folder / "server.log")
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server and its worker: there is nothing to be saved
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            opener.open(f"{address}/health", timeout=5).close()
            return address
        time.sleep(0.2)
    pytest.fail(f"mlflow server does not answer: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with running_chromium(CHROMIUM, tmp_path_factory.mktemp("chromium") / "profile") as page:
        page.resize(2400, 2400)  # what lies outside the window is not drawn
        yield page


def _links(browser: Browser) -> dict[str, str]:
    """Address by text of every link on the page."""
    anchors = "[...document.querySelectorAll('a[href]')]"
    return dict(browser.evaluate(f"{anchors}.map(a => [a.innerText.trim(), a.getAttribute('href')])"))


def _list(browser: Browser) -> dict[str, dict[str, str]]:
    """The list of runs: cells by run name and column."""
    cells = browser.evaluate(
        "[...document.querySelectorAll('.ag-row .ag-cell')].map(cell => "
        "[cell.closest('.ag-row').getAttribute('row-index'), cell.getAttribute('col-id'), cell.innerText.trim()])"
    )
    rows: dict[str, dict[str, str]] = {}
    for row, column, text in cells:
        rows.setdefault(row, {})[column] = text
    # A colour's name, which is hidden, precedes the run's.
    return {cells[NAME].rsplit("\n", 1)[-1]: cells for cells in rows.values() if NAME in cells}


def _values(browser: Browser) -> dict[str, str]:
    """The tables of names and values on a run's page."""
    rows = browser.evaluate(
        "[...document.querySelectorAll('[role=row]')].map(row => "
        "[...row.querySelectorAll('[role=cell]')].map(cell => cell.innerText.trim()))"
    )
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_the_list_shows_every_run_with_its_scores_data_and_model(lab: Lab, browser: Browser) -> None:
    browser.open(lab.at(VIEWS[0].address("1")), "isbi-choose", "val_v_rand", "0.9573", "isbi2012-unet")
    rows = _list(browser)
    assert set(rows) == {
        "isbi-choose",
        "predict isbi_membranes_2.zarr",
        "segment isbi-cells.zarr",
        "evaluate isbi-membranes.zarr",
    }
    training, evaluation = rows["isbi-choose"], rows["evaluate isbi-membranes.zarr"]
    assert training["metrics.`val_v_rand`"] == "0.9573", "the last value, not the best"
    assert training["metrics.`loss`"].startswith("0.4666")
    assert "isbi-raw.zarr (8ff5a5ffcd56de1f)" in training["attributes.`Dataset`"]
    assert evaluation["metrics.`v_rand_frozen`"] == "0.9742"
    assert evaluation["metrics.`v_info_frozen`"] == "0.976"
    assert "isbi2012-unet" in training["attributes.`Models`"]


def test_the_experiment_says_what_its_views_are(lab: Lab, browser: Browser) -> None:
    browser.open(lab.at("#/experiments/1/runs?workflowType=machine_learning"), "Views of these runs")
    links = _links(browser)
    assert {view.name: links.get(view.name) for view in VIEWS} == {view.name: view.address("1") for view in VIEWS}


def test_a_view_shows_the_runs_of_one_workflow_alone(lab: Lab, browser: Browser) -> None:
    browser.open(lab.at(VIEWS[1].address("1")), "isbi-choose", "network.filters", "1 matching run")
    rows = _list(browser)
    assert set(rows) == {"isbi-choose"}
    assert rows["isbi-choose"]["params.`network.filters`"] == "16"


def test_a_training_run_shows_metrics_tags_data_model_and_what_used_it(lab: Lab, browser: Browser) -> None:
    shown = ("Metrics (6)", "See also", "isbi2012-unet", "isbi-raw.zarr")
    browser.open(lab.at(lab.run("train")), *shown)
    text = browser.text()
    values = _values(browser)
    assert {"val_v_rand": "0.9573", "val_threshold": "0.8"}.items() <= values.items(), text
    assert {"loss", "learning_rate", "samples_per_second", "val_v_info"} <= set(values)
    assert values["network.filters"] == "16", "parameters"
    assert "isbi-raw.zarr (8ff5a5ffcd56de1f)" in text
    assert "tessera.workflow: train" in " ".join(text.split()).replace(" :", ":")
    links = _links(browser)
    assert links["predict isbi_membranes_2.zarr"] == lab.run("predict")
    assert any(address.startswith("#/models/isbi2012-unet") for address in links.values()), links


def test_descriptions_lead_from_the_training_to_the_scores_and_back(lab: Lab, browser: Browser) -> None:
    browser.open(lab.at(lab.run("train")), "See also", "predict isbi_membranes_2.zarr")
    prediction = _links(browser)["predict isbi_membranes_2.zarr"]
    browser.open(lab.at(prediction), "See also", "megavoxels_per_second", "isbi2012-unet")  # the model that it used
    links = _links(browser)
    assert links["isbi-choose"] == lab.run("train")
    assert links["segment isbi-cells.zarr"] == lab.run("segment")
    browser.open(lab.at(links["evaluate isbi-membranes.zarr"]), "See also", "v_rand_frozen", "0.9742")
    assert _links(browser)["predict isbi_membranes_2.zarr"] == lab.run("predict")


def test_every_curve_is_drawn(lab: Lab, browser: Browser) -> None:
    curves = ("loss", "val_v_rand", "learning_rate", "samples_per_second")
    browser.open(lab.at(lab.run("train", "model-metrics")), *curves)
    # The smallest box around a line that also holds a legend is the line's card; before the legend came, it is more.
    legends = (
        "[...document.querySelectorAll('path.js-line')].map(line => { let box = line; "
        r"while (box && !/isbi-choose \(/.test(box.innerText)) box = box.parentElement; "
        r"return box ? box.innerText.match(/isbi-choose \(\w+\)/g) : []; })"
    )
    for curve in curves:
        browser.wait_for(f"{legends}.some(found => found.length == 1 && found[0] == 'isbi-choose ({curve})')")


def test_the_last_picture_is_one_click_away(lab: Lab, browser: Browser) -> None:
    browser.open(lab.at(lab.run("train")), "See also", "validation.png")
    browser.open(lab.at(_links(browser)["validation.png"]), "validation.png")
    extents = "[...document.images].map(image => [image.naturalHeight, image.naturalWidth])"
    browser.wait_for(f"{extents}.some(([y, x]) => y == {PICTURE_PX[0]} && x == {PICTURE_PX[1]})")


def test_the_registered_model_tells_how_to_use_it_and_who_trained_it(lab: Lab, browser: Browser) -> None:
    browser.open(lab.at("#/models/isbi2012-unet/versions/1?workflowType=machine_learning"), "Version 1", "Trained by")
    assert "tessera predict --model models:/isbi2012-unet/1" in browser.text()
    addresses = browser.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))")
    assert lab.run("train") in addresses


def test_nothing_outside_this_machine_was_reached(lab: Lab, browser: Browser) -> None:
    browser.open(lab.at(lab.run("train")), "isbi-choose")
    assert browser.answered, "the log of answers works"
    assert browser.answered <= {"127.0.0.1"}, browser.answered
