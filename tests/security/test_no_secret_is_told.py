"""Secrets planted wherever a user may put one: nothing that a job prints, logs or leaves behind holds them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tifffile

from bundles import make_bundle
from mlflow_server import MlflowServer
from objectstore import BUCKET, KEY_ID, SECRET, S3Server
from terminal import refusal, tessera
from tessera.cli.main import main
from volumes import grey

# One for each place, so that what leaks is known by its name.
IN_USER, IN_WORD, IN_QUERY, IN_TOKEN, IN_MLFLOW = (
    f"planted-{place}" for place in ("user", "word", "query", "token", "mlflow")
)
PLANTED = (KEY_ID, SECRET, IN_USER, IN_WORD, IN_QUERY, IN_TOKEN, IN_MLFLOW)
SHAPE = (2, 48, 48)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    folder = tmp_path / "mlflow"
    folder.mkdir()
    running = MlflowServer(folder)
    running.start()
    try:
        running.wait()
        yield running
    finally:
        running.kill()


def planted_below(*folders: Path) -> list[str]:
    """`file: secret` of each planted one that a file holds."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return [f"{path}: {secret}" for path in files for secret in PLANTED if secret.encode() in path.read_bytes()]


def jobs(tmp_path: Path) -> tuple[list[str], list[str]]:
    """An ingest into the bucket and a prediction from there, serial and small."""
    tifffile.imwrite(tmp_path / "raw.tif", grey(SHAPE), photometric="minisblack")
    made = make_bundle(tmp_path / "b")
    url, serial = f"s3://{BUCKET}/raw.zarr", ("--engine", "serial")
    ingest = ["ingest", "--source", str(tmp_path / "raw.tif"), "--output", url, "--voxel_size_nm", "[50,4,4]", *serial]
    return ingest, ["predict", "--volume", url, "--model", str(made), "--output", str(tmp_path / "p.zarr"), *serial]


def plant(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """Secrets in the environment, where they belong; beside those of the bucket."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("://", f"://{IN_USER}:{IN_WORD}@"))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", IN_MLFLOW)
    monkeypatch.setenv("AWS_SESSION_TOKEN", IN_TOKEN)
    monkeypatch.setenv("TESSERA_LOG", "DEBUG")


def test_ingest_and_predict_leave_no_secret_behind_and_a_server_that_is_away_has_its_own_kept(
    s3: S3Server, home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, predict = jobs(tmp_path)
    plant(monkeypatch, "http://127.0.0.1:9")
    assert main(ingest) == 0
    assert main(predict) == 2
    assert "http://***@127.0.0.1:9 does not answer" in capfd.readouterr().err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert main(predict) == 0
    assert_nothing_told(s3, capfd, home, tmp_path)


@pytest.mark.slow
def test_a_server_that_wants_a_password_keeps_none(
    s3: S3Server,
    server: MlflowServer,
    home: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ingest, predict = jobs(tmp_path)
    plant(monkeypatch, server.uri)
    assert main(ingest) == 0
    assert main(predict) == 0
    assert_nothing_told(s3, capfd, home, tmp_path)


def assert_nothing_told(s3: S3Server, capfd: pytest.CaptureFixture[str], *folders: Path) -> None:
    """No secret in what was printed, nor in any file or object."""
    told = capfd.readouterr()
    assert [secret for secret in PLANTED if secret in told.out + told.err] == []
    assert planted_below(*folders) == []
    assert [key for key in s3.listing() if any(secret.encode() in s3.get(key) for secret in PLANTED)] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--volume", f"s3://{IN_USER}:{IN_WORD}@lab/raw.zarr"], "URL holds credentials"),
        (["--volume", f"https://host/raw.zarr?X-Amz-Signature={IN_QUERY}"], "a URL with [?] or # is not supported"),
        (
            ["--volume", "raw", "--tracking.uri", f"http://{IN_USER}:{IN_WORD}@host:5000"],
            "tracking.uri holds credentials",
        ),
        (["--volume", "raw", "--tracking.uri", f"postgresql://{IN_USER}:{IN_WORD}@host/db"], "MLFLOW_TRACKING_URI"),
        (["--volum", f"https://{IN_USER}:{IN_WORD}@host/raw.zarr?key={IN_QUERY}"], "Did you mean --volume"),
    ],
    ids=["volume", "signed link", "tracking server", "tracking database", "misspelt"],
)
def test_a_setting_that_holds_a_secret_is_refused_without_repeating_it(
    words: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    message = refusal(capsys, home, "predict", "--model", "b", "--output", "p", *words)
    assert re.search(said, message), message
    assert [secret for secret in PLANTED if secret in message] == []


def test_a_config_file_cannot_keep_a_secret_either(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(f"tracking: {{uri: 'http://{IN_USER}:{IN_WORD}@host:5000'}}\n")
    message = refusal(capsys, home, "train", "--config", config)
    assert "tracking.uri holds credentials" in message and IN_WORD not in message


def test_what_libraries_log_is_masked_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    tessera(capsys, "status", "not-there")  # sets logging up
    logging.getLogger("urllib3").warning("retrying %s", f"https://{IN_USER}:{IN_WORD}@host/x?signature={IN_QUERY}")
    told = capsys.readouterr().err
    assert "https://***@host/x?***" in told and "planted" not in told
    assert sys.stderr is not None
