"""The alias `champion` moves to what is better on the same held-out data, and for no other reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tessera.tracking.champion import crown, numbered
from tessera.tracking.runs import tracking_uri

NAME = "lab-unet"


@pytest.fixture
def uri(home: Path, empty_database: Path) -> str:
    (home / "mlflow.db").write_bytes(empty_database.read_bytes())
    uri = tracking_uri(None, home)
    _client(uri).create_registered_model(NAME)
    return uri


def _client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri, registry_uri=uri)  # whatever registry an earlier test spoke to


def _enter(uri: str, v_rand: float | None, data: str | None = "data a") -> str:
    """Register a further version and let it compete; returns what was said of it."""
    version = _client(uri).create_model_version(NAME, source="file:///nowhere").version
    return crown(uri, f"models:/{NAME}/{version}", v_rand, data)


def _champion(uri: str) -> str:
    return numbered(uri, f"models:/{NAME}@champion")


def test_the_first_version_is_champion_until_a_better_one_comes(uri: str) -> None:
    assert "there was none before" in _enter(uri, 0.95)
    assert _champion(uri) == f"models:/{NAME}/1"
    assert "V_Rand 0.9600 after 0.9500 of version 1 on the same held-out sections" in _enter(uri, 0.96)
    assert _champion(uri) == f"models:/{NAME}/2"


@pytest.mark.parametrize(
    ("v_rand", "data", "why"),
    [
        (0.94, "data a", "version 2 is no better, V_Rand 0.9400 after 0.9500"),
        (0.95, "data a", "version 2 is no better"),
        (0.99, "data b", "version 2 was scored on other held-out sections"),
        (None, None, "version 2 was scored on no held-out sections"),
    ],
)
def test_the_champion_stays_where_another_is_no_better_or_cannot_be_compared(
    uri: str, v_rand: float | None, data: str | None, why: str
) -> None:
    _enter(uri, 0.95)
    said = _enter(uri, v_rand, data)
    assert said.startswith("version 1 stays champion: ")
    assert why in said
    assert _champion(uri) == f"models:/{NAME}/1"


def test_a_champion_that_nothing_was_held_out_for_stays(uri: str) -> None:
    _enter(uri, None, None)
    assert "cannot be compared with it" in _enter(uri, 0.99)
    assert _champion(uri) == f"models:/{NAME}/1"


def test_an_interrupted_job_that_crowns_again_changes_nothing(uri: str) -> None:
    _enter(uri, 0.95)
    assert crown(uri, f"models:/{NAME}/1", 0.95, "data a") == "version 1 is the champion"
    assert _champion(uri) == f"models:/{NAME}/1"


def test_latest_is_the_newest_and_a_number_stays_what_it_is(uri: str) -> None:
    for v_rand in (0.95, 0.94):
        _enter(uri, v_rand)
    assert numbered(uri, f"models:/{NAME}/latest") == f"models:/{NAME}/2"
    assert numbered(uri, f"models:/{NAME}/7") == f"models:/{NAME}/7"


def test_an_alias_that_is_not_there_is_named(uri: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"models:/{NAME}@best is not in the registry.*such as models:/{NAME}/1"
    ):
        numbered(uri, f"models:/{NAME}@best")
