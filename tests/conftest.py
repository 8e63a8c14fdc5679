"""Fixtures that the whole suite shares: one home, one Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from objectstore import BUCKET, S3Server, running_s3

# A busy machine is no reason to fail: how long an example takes is not what these tests promise.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Ray's workers import the functions that a test hands them by the name of the test's module.
_folders = [str(path) for path in Path(__file__).parent.iterdir() if path.is_dir()]
os.environ["PYTHONPATH"] = os.pathsep.join([*_folders, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, without a run: creating them takes seconds, copying them none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `TESSERA_HOME` of the test's own."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("TESSERA_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of 4 logical CPUs, started once for the suite; small tasks, so two real cores carry them."""
    from tessera.engine.session import connected

    with connected(cpus=4):
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for the suite."""
    with running_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, empty, with this process's environment set to reach it."""
    for key in s3_server.listing():
        s3_server.client.delete_object(Bucket=BUCKET, Key=key)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
