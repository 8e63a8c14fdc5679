"""A registered bundle is found by number or alias, kept once, and nothing half-done is left lying about."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tessera.images.normalise import Normalisation
from tessera.model.bundle import WEIGHTS, Contract, load_contract, save_contract
from tessera.model.spec import UnetSpec
from tessera.tracking.runs import tracking_uri
from tessera.workflows.models import find_model


@pytest.fixture
def registered(home: Path) -> str:
    """A model of one version; its weights are never loaded."""
    folder = home / "registry" / "bundle"
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(b"weights")
    spec = UnetSpec(2, 1, "same", batch_norm=False, dropout=0.0)
    save_contract(folder, Contract(spec, Normalisation("global", 0.0, 1.0), "uint8", (50.0, 4.0, 4.0), threshold=0.5))
    uri = tracking_uri(None, home)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("lab")
    client.create_model_version("lab", source=folder.as_uri())
    client.set_registered_model_alias("lab", "champion", "1")
    return "models:/lab"


def test_a_model_named_by_alias_is_recorded_by_its_number(registered: str, home: Path) -> None:
    found = [find_model(f"{registered}{name}", None) for name in ("@champion", "/latest", "/1")]
    assert {model.name for model in found} == {"models:/lab/1"}
    assert {model.bundle for model in found} == {home / "models" / found[0].digest[:16]}
    assert load_contract(found[0].bundle).threshold == 0.5
    assert [path.name for path in (home / "models").iterdir()] == [found[0].bundle.name], "no draft is left"


def test_what_a_killed_job_left_a_day_ago_is_removed_and_what_another_loads_now_stays(
    registered: str, home: Path
) -> None:
    old, new = (home / "models" / name for name in (".draft-old", ".draft-new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / WEIGHTS).write_bytes(b"half")
    yesterday = time.time() - 25 * 3600
    os.utime(old, (yesterday, yesterday))
    find_model(f"{registered}/1", None)
    assert not old.exists()
    assert (new / WEIGHTS).exists()
