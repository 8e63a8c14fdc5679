"""Training whose processes, tracking server and driver are killed: real ones, as an operator would lose them.

What must come of it is the run that nobody disturbed: the same losses, step by step, in one MLflow run.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from mlflow import MlflowClient

from mlflow_server import MlflowServer
from tessera.images.augment import Augmentation
from tessera.model.numerics import Numerics
from tessera.model.optimiser import OptimiserSpec
from tessera.model.spec import UnetSpec
from tessera.settings.common import TrainingTrackingSettings
from tessera.settings.train import (
    AnnotatedSections,
    DataSettings,
    ResourceSettings,
    ScheduleSettings,
    TrainSettings,
)
from tessera.tracking.runs import tracking_uri
from tessera.workflows.plain import plain
from tessera.workflows.train import train
from volumes import put_volume

EVERY, WORKER = 6, "ray::RayTrainWorker"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "survival.json"
Losses = dict[int, list[float]]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> DataSettings:
    """Three annotated sections of dark lines, one of them held out."""
    folder = tmp_path_factory.mktemp("survival")
    rng = np.random.default_rng(4)
    lines = (np.arange(64) % 16) < 3
    membrane = np.stack([np.roll(lines[:, None] | lines[None, :], z, axis=(0, 1)) for z in range(3)])
    grey = np.clip(170 - 90 * membrane + 20 * rng.standard_normal(membrane.shape), 0, 255).astype(np.uint8)
    raw = str(put_volume(folder / "raw.zarr", grey))
    labels = str(put_volume(folder / "labels.zarr", np.where(membrane, 0, 255).astype(np.uint8), kind="labels"))
    return DataSettings([AnnotatedSections(raw, labels, "0-1")], [AnnotatedSections(raw, labels, "2")])


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller takes one report per look: at every step of a tiny network it must look often."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.05")


def _settings(data: DataSettings, name: str, steps: int, failures: int = 2) -> TrainSettings:
    """Everything that a restart must bring back is in use: momentum, averages, batch statistics, dropout."""
    return TrainSettings(
        name=name,
        data=data,
        network=UnetSpec(filters=2, depth=2, padding="same", batch_norm=True, dropout=0.1),
        augmentation=Augmentation(elastic_sigma_px=2.0, flips=True, noise_sigma=0.05),
        optimiser=OptimiserSpec(learning_rate=1e-2, warmup_steps=2, ema_momentum=0.8, ema_norm_batches=2),
        schedule=ScheduleSettings(steps=steps, batch=2, crop_px=32, log_every=1, checkpoint_every=EVERY),
        resources=ResourceSettings(workers=2, max_failures=failures),
        numerics=Numerics(deterministic=True),
    )


def _losses(folder: Path) -> Losses:
    """Step -> its losses, one for each time that it was taken."""
    found: Losses = {}
    for line in _lines(folder):
        found.setdefault(line["step"], []).extend([line["loss"]] if "loss" in line else [])
    return found


def _lines(folder: Path) -> list[dict[str, float]]:
    path = folder / "progress.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _until_step(folder: Path, step: int, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until the run reported this step since now."""
    already, deadline = len(_lines(folder)), time.monotonic() + 300
    while not any(line["step"] >= step for line in _lines(folder)[already:]):
        assert time.monotonic() < deadline and alive(), (folder / "driver.log").read_text()[-3000:]
        time.sleep(0.01)


class Driver:
    """`tessera train` in a process of its own, with a Ray of its own."""

    def __init__(self, settings: TrainSettings, home: Path) -> None:
        self.folder = home / "runs" / str(settings.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        config = home / "survival.yaml"
        config.write_text(yaml.safe_dump(plain(settings)))
        with (self.folder / "driver.log").open("ab") as log:
            command = [sys.executable, "-m", "tessera.cli", "train", "--config", str(config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=home)

    def alive(self) -> bool:
        return self.process.poll() is None

    def kill_workers(self, count: int) -> None:
        """SIGKILL to `count` of the training workers, all at once."""
        kill_workers(self.process.pid, count)

    def strike(self, kind: str) -> None:
        """Kill one worker, the group or the driver."""
        if kind == "driver":
            self.kill()
        else:
            self.kill_workers({"worker": 1, "group": 2}[kind])

    def kill(self) -> None:
        """SIGKILL to the driver; its Ray ends with it, or the next would meet it.

        Two of Ray's agents look for their raylet once in a while only: they are not waited for.
        """
        left = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        agents = [process for process in left if _name(process).endswith("Agent")]
        _, alive = psutil.wait_procs([process for process in left if process not in agents], timeout=60)
        assert not alive, alive
        for agent in agents:
            with suppress(psutil.NoSuchProcess):
                agent.kill()

    def end(self) -> None:
        """Leave nothing behind, whatever the test came to."""
        if self.alive():
            self.kill()


def kill_workers(driver: int, count: int) -> None:
    """SIGKILL to `count` of the two training workers of a driver, all at once."""
    found = [p for p in psutil.Process(driver).children(recursive=True) if _name(p).startswith(WORKER)]
    assert len(found) == 2, found
    for worker in found[:count]:
        worker.kill()


def _name(process: psutil.Process) -> str:
    """What Ray calls the process; nothing where it is gone."""
    try:
        return next(iter(process.cmdline()), "")
    except psutil.Error:
        return ""


@contextmanager
def _driving(settings: TrainSettings, home: Path) -> Iterator[Driver]:
    driver = Driver(settings, home)
    try:
        yield driver
    finally:
        driver.end()


@contextmanager
def _meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something while the training inside the block goes on."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    yield
    thread.join()


def test_training_outlives_its_server_and_a_worker(
    ray_session: None,
    volumes: DataSettings,
    home: Path,
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One story, because each group costs an import of TensorFlow: the server dies, then a worker, in one run."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    server, folder = MlflowServer(tmp_path), home / "runs" / "disturbed"
    settings = replace(_settings(volumes, "disturbed", 18), tracking=TrainingTrackingSettings(uri=server.uri))
    with pytest.raises(ConnectionError, match=rf"MLflow at {server.uri} does not answer.*Try null"):
        train(settings)
    assert not folder.exists(), "nothing was begun"

    def disturb() -> None:
        _until_step(folder, 2)
        server.kill()
        _until_step(folder, EVERY + 1)
        kill_workers(os.getpid(), 1)

    server.start()
    try:
        server.wait()
        told = r"training disturbed is done, but MLflow has not all of it.*is kept in .*without training again"
        with _meanwhile(disturb), pytest.raises(RuntimeError, match=told):
            train(settings)
        begun = json.loads((folder / "run.json").read_text())["run_id"]
        server.start()
        server.wait()
        assert train(settings).run_id == begun
        _assert_one_mlflow_run(MlflowClient(server.uri), folder)
    finally:
        server.kill()
    repeated = {step: values for step, values in _losses(folder).items() if len(values) > 1}
    assert 1 <= len(repeated) <= EVERY, "a worker died, and no more than one interval was lost"
    for step, values in repeated.items():
        np.testing.assert_allclose(values[1:], values[0], rtol=0, atol=1e-6, err_msg=f"step {step}, taken again")


def test_two_at_one_run_are_refused(ray_session: None, volumes: DataSettings, home: Path) -> None:
    settings = _settings(volumes, "taken", 18)
    holder = f"from tessera.storage.locks import alone_in; from pathlib import Path; path = Path({str(home)!r})"
    waits = "\nwith alone_in(path / 'runs' / 'taken'):\n    print('in', flush=True)\n    input()"
    with subprocess.Popen([sys.executable, "-c", holder + waits], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        with pytest.raises(FileExistsError, match=r"another process is working in .*taken"):
            train(settings)
        process.kill()


def _assert_one_mlflow_run(client: MlflowClient, folder: Path) -> None:
    """Each step once, those of the outage and those taken twice too."""
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {metric.step: metric.value for metric in history} == {
        step: values[-1] for step, values in _losses(folder).items()
    }
    assert len(history) == 18
    assert {metric.step for metric in client.get_metric_history(run.info.run_id, "val_v_rand")} == {6, 12, 18}


def _assert_as_if_undisturbed(folder: Path, expected: dict[int, float], restarts: int) -> None:
    losses = _losses(folder)
    assert sorted(losses) == sorted(expected)
    for step, values in losses.items():
        np.testing.assert_allclose(values, expected[step], rtol=0, atol=1e-6, err_msg=f"step {step}")
    steps = [int(line["step"]) for line in _lines(folder) if "loss" in line]
    back = [before - after + 1 for before, after in pairwise(steps) if after <= before]
    assert len(back) <= restarts
    assert all(repeated <= EVERY for repeated in back), f"more than one interval was lost: {steps}"


@dataclass(frozen=True)
class Death:
    """One kill of the soak: of what, after which step, and how many steps were taken again."""

    kind: str
    step: int
    repeated: int


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_long_training_outlives_many_deaths_of_each_kind(volumes: DataSettings, home: Path) -> None:
    """Ten kills each of a worker, the group and the driver at seeded random steps; the figures go to a file.

    TESSERA_SOAK_KILLS sets another number per kind.
    """
    rounds = int(os.environ.get("TESSERA_SOAK_KILLS", "10"))
    rng = np.random.default_rng(6)
    kinds = [str(kind) for kind in rng.permutation(["worker", "group", "driver"] * rounds)]
    steps = (2 * len(kinds) + 2) * EVERY
    plain_run = _settings(volumes, "undisturbed", steps, failures=100)
    with _driving(plain_run, home) as driver:
        assert driver.process.wait(timeout=1800) == 0
    expected = {step: values[0] for step, values in _losses(driver.folder).items()}
    settings = replace(plain_run, name="mortal", tracking=TrainingTrackingSettings(experiment="mortal"))
    driver = Driver(settings, home)
    deaths = []
    try:
        for number, kind in enumerate(kinds):
            at = 2 * number * EVERY + int(rng.integers(1, 2 * EVERY))
            _until_step(driver.folder, at, driver.alive)
            driver.strike(kind)
            taken = len(_lines(driver.folder))
            if kind == "driver":
                driver = Driver(settings, home)
            deaths.append(_death(kind, driver, taken))
        assert driver.process.wait(timeout=1800) == 0, (driver.folder / "driver.log").read_text()[-3000:]
    finally:
        driver.end()
    _assert_as_if_undisturbed(driver.folder, expected, restarts=len(kinds))
    difference = max(abs(value - expected[step]) for step, values in _losses(driver.folder).items() for value in values)
    client = MlflowClient(tracking_uri(None, home))
    (run,) = client.search_runs([client.get_experiment_by_name("mortal").experiment_id])
    assert run.info.status == "FINISHED"
    _write_results(deaths, steps, difference)


def _death(kind: str, driver: Driver, taken: int) -> Death:
    """Wait for the first step after a kill, and count what is taken again."""
    deadline = time.monotonic() + 300
    while not (after := [line for line in _lines(driver.folder)[taken:] if "loss" in line]):
        assert time.monotonic() < deadline and driver.alive(), (driver.folder / "driver.log").read_text()[-3000:]
        time.sleep(0.05)
    last = max(int(line["step"]) for line in _lines(driver.folder)[:taken] if "loss" in line)
    return Death(kind, last, last - int(after[0]["step"]) + 1)


def _write_results(deaths: list[Death], steps: int, difference: float) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    content = {
        "command": "make soak",
        "commit": commit,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "steps": steps,
        "checkpoint_every": EVERY,
        "deaths": [asdict(death) for death in deaths],
        "most_steps_repeated": max(death.repeated for death in deaths),
        "largest_difference_of_a_loss": difference,
        "mlflow_runs": 1,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")
