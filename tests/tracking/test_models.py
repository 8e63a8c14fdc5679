"""A registered model is loaded without a word of MLflow's about what it does not need."""

from __future__ import annotations

import os
import runpy
import warnings
from pathlib import Path

import mlflow
import pytest

from tessera.tracking.models import CODE
from tessera.tracking.runs import speaking_to


def test_the_registered_model_s_code_is_silent() -> None:
    warnings.onceregistry.clear()  # type: ignore[attr-defined]  # MLflow says it once a process
    with warnings.catch_warnings(record=True) as heard:
        runpy.run_path(str(CODE))
    assert [str(one.message) for one in heard if "type hint" in str(one.message)] == []


@pytest.mark.parametrize("variable", [None, "sqlite:////elsewhere/mlflow.db"])
def test_mlflow_s_own_addresses_are_put_back(
    variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
        if variable:
            monkeypatch.setenv(name, variable)
    before = dict(os.environ), mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with speaking_to(uri):
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (uri, uri)
    after = {name: value for name, value in os.environ.items() if name in before[0] or name.endswith("_URI")}
    assert (after, mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == before
