"""Promises about `tessera audit`: seams that a wrong pipeline leaves are found, told and shown; right output passes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from bundles import make_bundle
from seam_jobs import ORGANELLES, Fault, audited, drawn, predicted, trained, with_fault
from terminal import Answer, refusal, tessera
from tessera.geometry.boxes import Box
from tessera.images.phantom import Phantom
from tessera.model.predictor import load_predictor
from tessera.settings.audit import AuditSettings
from tessera.storage.ledger import ledger_path, read_rows
from tessera.storage.volumes import open_volume, update_attributes
from tessera.tracking.runs import tracking_uri
from tessera.workflows import audit as audit_module
from tessera.workflows import predict as predict_module
from tessera.workflows.audit import read_tiles
from volumes import put_volume

SHAPE = (4, 230, 250)
LAYOUT = ("--shard", "[2, 96, 128]", "--chunk", "[2, 96, 128]", "--tile", "[1, 48, 48]")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It learned the phantom: an untrained network's noise hides every seam."""
    return trained(tmp_path_factory.mktemp("bundle"), "shallow")


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return Phantom(7).block(Box.whole(SHAPE)).raw


@pytest.fixture
def raw(home: Path, voxels: np.ndarray) -> Path:
    return put_volume(home / "volumes" / "raw.zarr", voxels)


@pytest.fixture
def output(home: Path) -> Path:
    return home / "volumes" / "out.zarr"


def _predict(capsys: Capsys, bundle: Path, *more: str) -> Answer:
    words = ["predict", "--volume", "raw", "--model", bundle, "--output", "out", "--engine", "serial", *LAYOUT, *more]
    return tessera(capsys, *words)


def _plant(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Let workers load networks that are handed wrong tiles."""

    def load(*arguments: Any) -> Any:
        predict, contract = load_predictor(*arguments)
        return with_fault(predict, contract, fault), contract

    monkeypatch.setattr(predict_module, "load_predictor", load)


def _run(home: Path, output: Path) -> Any:
    return MlflowClient(tracking_uri(None, home)).get_run(open_volume(output).attributes["run_id"])


def test_a_right_prediction_passes_and_says_where_its_tiles_met(
    bundle: Path, raw: Path, output: Path, home: Path, capsys: Capsys
) -> None:
    assert _predict(capsys, bundle, "--roi", "0:4,6:,11:").code == 0
    found = open_volume(output).attributes["audit"]
    assert found["verdict"] == "passed" and found["faces"] > 20 and found["references"] > 100
    assert set(found["scores"]) == {"faces", "block faces", "worst face"}
    # The region begins at 6 and 11; tiles begin at multiples of 4 from voxel 0 of the raw volume.
    tiles = read_tiles(output, 12)
    assert tiles[0] == ((1,), (34, 70), (41, 85)) and tiles.silent == 0
    run = _run(home, output)
    assert run.data.tags["tessera.audit"] == "passed" and run.info.status == "FINISHED"
    assert run.data.metrics["audit_failed"] == 0 and run.data.metrics["audit_seconds"] > 0


@pytest.mark.parametrize("fault", [Fault("mirror"), Fault("zero")], ids=lambda f: f.kind)
def test_a_wrong_prediction_fails_loudly_and_stays(
    bundle: Path, raw: Path, output: Path, home: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    _plant(monkeypatch, fault)
    answer = _predict(capsys, bundle)
    assert answer.code == 1
    assert f"{output}: audit failed: faces " in answer.err
    assert "face at " in answer.err and "The output stays as it is" in answer.err
    volume = open_volume(output)
    assert volume.attributes["complete"] is True and volume.attributes["audit"]["verdict"] == "failed"
    run, client = _run(home, output), MlflowClient(tracking_uri(None, home))
    assert run.data.tags["tessera.audit"] == "failed" and run.info.status == "FAILED"
    assert {"audit.json", "worst faces.png"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_second_audit_gives_the_same_answer_and_reads_no_voxel(
    bundle: Path, raw: Path, output: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, Fault("mirror"))
    assert _predict(capsys, bundle, "--audit", "false").code == 0
    assert "audit" not in open_volume(output).attributes
    first = tessera(capsys, "audit", output, "--engine", "serial")
    assert first.code == 1 and "audit failed" in first.err
    rows = len(list(read_rows(output, stage="audit")))
    again = tessera(capsys, "audit", output, "--engine", "serial")
    assert (again.code, again.err.splitlines()[-3:]) == (1, first.err.splitlines()[-3:])
    assert len(list(read_rows(output, stage="audit"))) == rows == 12
    assert json.loads(json.dumps(open_volume(output).attributes["audit"]))["verdict"] == "failed"


def test_blocks_that_were_predicted_anew_are_audited_anew(
    bundle: Path, raw: Path, output: Path, tmp_path: Path, capsys: Capsys
) -> None:
    assert _predict(capsys, bundle).code == 0
    before = open_volume(output).attributes["audit"]["scores"]["faces"]
    assert _predict(capsys, make_bundle(tmp_path / "other"), "--overwrite", "true").code == 0
    assert open_volume(output).attributes["audit"]["scores"]["faces"] != before


def test_actors_find_what_a_serial_audit_finds(
    ray_session: None, bundle: Path, raw: Path, output: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _predict(capsys, bundle, "--audit", "false").code == 0
    monkeypatch.setattr(audit_module, "_SMALL_VOXELS", 0)
    found = []
    for engine in ("serial", "ray"):
        monkeypatch.setattr(audit_module, "METHOD", engine)  # another key: nothing is taken over
        assert tessera(capsys, "audit", output, "--engine", engine, "--workers", 2).code == 0
        found.append(open_volume(output).attributes["audit"])
    assert found[0] == found[1]


def test_sections_that_are_not_valid_are_left_out(
    bundle: Path, voxels: np.ndarray, home: Path, output: Path, capsys: Capsys
) -> None:
    put_volume(home / "volumes" / "raw.zarr", voxels, invalid_sections=[1])
    assert _predict(capsys, bundle).code == 0
    (row, *_) = read_rows(output, stage="audit")
    _, _, counts, _ = row.values["sections"]
    assert counts == [0], "section 1 differs from section 0 by all that there is"
    assert open_volume(output).attributes["audit"]["verdict"] == "passed"


def test_one_block_of_one_tile_has_nothing_to_compare(bundle: Path, home: Path, output: Path, capsys: Capsys) -> None:
    put_volume(home / "volumes" / "raw.zarr", Phantom(3).block(Box.whole((2, 40, 40))).raw)
    assert _predict(capsys, bundle).code == 0
    answer = tessera(capsys, "audit", output, "--engine", "serial")
    assert answer.code == 0 and "audit not applicable: it has no faces" in answer.out


def test_rows_of_an_earlier_version_are_judged_by_block_faces_alone(
    bundle: Path,
    raw: Path,
    output: Path,
    capsys: Capsys,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict_module, "with_tiles", lambda process, *_: process)
    assert _predict(capsys, bundle, "--audit", "false").code == 0
    with caplog.at_level(logging.WARNING, "tessera"):
        assert tessera(capsys, "audit", output, "--engine", "serial").code == 0
    assert "12 blocks do not say where their tiles met" in caplog.text
    faces = [face for row in read_rows(output, stage="audit") for face in row.values["faces"]]
    assert faces and all(kind == "block" for _, _, _, kind, *_ in faces)


def test_what_cannot_be_audited_is_refused(
    bundle: Path, raw: Path, output: Path, home: Path, tmp_path: Path, capsys: Capsys
) -> None:
    assert "no-such.zarr" in refusal(capsys, home, "audit", tmp_path / "no-such.zarr")
    assert "is no output of tessera predict" in refusal(capsys, home, "audit", raw)
    assert _predict(capsys, bundle, "--audit", "false").code == 0
    update_attributes(output, complete=False)
    assert "is only half-written" in refusal(capsys, home, "audit", output)
    update_attributes(output, complete=True)
    ledger_path(output).rename(tmp_path / "elsewhere")
    assert "has no ledger beside it" in refusal(capsys, home, "audit", output, "--engine", "serial")


def test_settings_want_an_output() -> None:
    with pytest.raises(ValueError, match=r"output is not given. Try --output"):
        replace(AuditSettings("a"), output="")


# Trials: a small version of tests/benchmarks/seam_audit.py.


def _verdicts(bundle: Path, seeds: range, fault: Fault | None = None) -> list[str]:
    predict, contract = load_predictor(bundle)
    wrong = predict if fault is None else with_fault(predict, contract, fault)
    found = []
    for seed in seeds:
        job = drawn(seed, sections=(3, 4), size=(150, 188))
        job = replace(job, network="shallow", tile=(1, 40, 48), phantom=Phantom(seed % 2, ORGANELLES))
        found.append(audited(job, predicted(job, wrong, contract), contract.network.arithmetic).verdict)
    return found


def test_twelve_right_predictions_pass(bundle: Path) -> None:
    assert _verdicts(bundle, range(12)) == ["passed"] * 12


@pytest.mark.parametrize("fault", [Fault("normalisation"), Fault("mirror"), Fault("zero")], ids=lambda f: f.kind)
def test_planted_faults_are_caught_even_in_small_volumes(bundle: Path, fault: Fault) -> None:
    assert _verdicts(bundle, range(100, 106), fault).count("failed") >= 4


def test_a_fault_that_is_none_is_refused(bundle: Path) -> None:
    predict, contract = load_predictor(bundle)
    with pytest.raises(ValueError, match=r"halo_px=22 is all of the network's halo: nothing would be wrong"):
        with_fault(predict, contract, Fault("mirror", 1.0, 22))
