"""A prediction as a job: what fails is listed, what is done is kept, what is missing is done, lineage is followable."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from bundles import make_bundle
from tessera.cli.main import main
from tessera.geometry.blocks import BlockGrid
from tessera.images.quantise import quantise
from tessera.model.predictor import load_predictor, predict_volume
from tessera.storage.identity import identity
from tessera.storage.ledger import read_rows
from tessera.storage.volumes import create_volume, open_volume
from tessera.tracking.runs import tracking_uri

SHAPE = (4, 64, 64)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def volume(home: Path) -> Path:
    path = home / "volumes" / "raw.zarr"
    layout = {"chunk": (2, 32, 32), "shard": (2, 32, 32)}
    made = create_volume(path, SHAPE, np.uint8, voxel_size_nm=(50, 4, 4), **layout)
    voxels = np.random.default_rng(1).integers(1, 256, SHAPE, dtype=np.uint8)
    for _, box in BlockGrid(SHAPE, made.shard).boxes():
        made.write(box, voxels[box.slices])
    return path


def _predict(bundle: Path, *more: str) -> int:
    serial = ["--engine", "serial", "--attempts", "1"]
    layout = ["--shard", "[2, 32, 32]", "--chunk", "[2, 32, 32]"]
    return main(["predict", "--volume", "raw", "--model", str(bundle), "--output", "out", *serial, *layout, *more])


def _rot(path: Path, content: bytes) -> None:
    """Change a file as a failing disk does: its size and dates stay."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_corrupt_chunk_fails_its_blocks_alone_and_a_rerun_does_only_those(
    bundle: Path, volume: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = next(path for path in sorted((volume / "0" / "c").rglob("*")) if path.is_file())
    kept = shard.read_bytes()
    _rot(shard, b"\0" * len(kept))

    assert _predict(bundle) == 1
    message = capsys.readouterr().err
    out = home / "volumes" / "out.zarr"
    failed = {row.block for row in read_rows(out) if row.status == "failed"}
    assert 0 in failed, "the block of the corrupt shard"
    assert "blocks of" in message
    assert "block 0 [0:2, 0:32, 0:32]:" in message
    assert "the same command with `--retry_failed true`" in message
    done = {row.block for row in read_rows(out) if row.status == "done"}
    assert done | failed == set(range(8))
    assert done, "the blocks that do not read it are done"
    assert open_volume(out).attributes["complete"] is False

    _rot(shard, kept)
    rows = len(list(read_rows(out)))
    assert _predict(bundle) == 1
    assert "block 0 [0:2, 0:32, 0:32]:" in capsys.readouterr().err, "an earlier run's failures are listed again"
    assert len(list(read_rows(out))) == rows
    assert _predict(bundle, "--retry_failed", "true") == 0
    times = Counter(row.block for row in read_rows(out) if row.status == "done")
    assert times == Counter(range(8)), "every block is done exactly once"
    assert open_volume(out).attributes["complete"] is True


def test_a_rerun_of_a_finished_job_computes_nothing_and_keeps_its_run(bundle: Path, volume: Path, home: Path) -> None:
    assert _predict(bundle) == 0
    out = home / "volumes" / "out.zarr"
    run, rows = open_volume(out).attributes["run_id"], len(list(read_rows(out)))
    assert _predict(bundle, "--tile", "[1, 16, 16]") == 0
    assert len(list(read_rows(out))) == rows
    assert open_volume(out).attributes["run_id"] == run


def test_another_model_on_the_same_output_is_refused_until_overwritten(
    bundle: Path, volume: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _predict(bundle) == 0
    first = open_volume(home / "volumes" / "out.zarr").array[:]
    other = make_bundle(tmp_path / "other", seed=99)
    assert _predict(other) == 2
    assert "belongs to another job: model was" in capsys.readouterr().err
    np.testing.assert_array_equal(open_volume(home / "volumes" / "out.zarr").array[:], first)
    assert _predict(other, "--overwrite", "true") == 0
    assert not np.array_equal(open_volume(home / "volumes" / "out.zarr").array[:], first)


def test_the_output_is_averaged_as_the_model_s_contract_says(
    volume: Path, tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle(tmp_path / "averaging", symmetries=8)
    with caplog.at_level(logging.WARNING, "tessera"):
        assert _predict(bundle) == 0
    assert "averaging over" not in caplog.text
    out, raw = open_volume(home / "volumes" / "out.zarr"), open_volume(volume).array[:]
    network, contract = load_predictor(bundle, 8)
    averaged, alone = (predict_volume(one, raw, contract) for one in (network, load_predictor(bundle, 1)[0]))
    assert np.abs(out.array[:].astype(int) - quantise(averaged).astype(int)).max() <= 1
    assert np.abs(quantise(alone).astype(int) - quantise(averaged).astype(int)).max() > 5
    assert out.attributes["symmetries"] == 8


def test_averaging_over_others_than_the_model_s_is_said_and_never_mixed_into_its_output(
    bundle: Path, volume: Path, home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert _predict(bundle) == 0
    assert _predict(bundle, "--symmetries", "1") == 0, "the contract's own number is no other job"
    first = open_volume(home / "volumes" / "out.zarr").array[:]
    with caplog.at_level(logging.WARNING, "tessera"):
        assert _predict(bundle, "--symmetries", "4") == 2
    assert "averaging over symmetries=4 as asked, although the model's threshold was chosen with symmetries=1" in (
        caplog.text
    )
    assert "belongs to another job: symmetries was 1" in capsys.readouterr().err
    np.testing.assert_array_equal(open_volume(home / "volumes" / "out.zarr").array[:], first)


def test_lineage_is_followable_from_the_output_to_its_model(bundle: Path, volume: Path, home: Path) -> None:
    assert _predict(bundle) == 0
    attributes = open_volume(home / "volumes" / "out.zarr").attributes
    assert attributes["kind"] == "membrane probability"
    assert attributes["polarity"].startswith("255 = membrane")
    assert attributes["threshold"] == 0.5
    assert len(attributes["model"]["digest"]) == 64
    run = MlflowClient(tracking_uri(None, home)).get_run(attributes["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["tessera.output"].endswith("out.zarr")
    assert run.data.metrics["blocks"] == 8
    (read,) = run.inputs.dataset_inputs
    assert (read.dataset.name, read.tags[0].value) == ("raw.zarr", "prediction")
    assert read.dataset.digest == identity(open_volume(volume))[:16]


def test_a_full_disk_loses_nothing(
    bundle: Path, volume: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tessera.storage.volumes import Volume

    real, calls = Volume.write, Counter[str]()

    def sometimes_full(self: Volume, box: object, data: np.ndarray) -> None:
        calls["writes"] += 1
        if calls["writes"] > 3:
            raise OSError(28, "No space left on device")
        real(self, box, data)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Volume, "write", sometimes_full)
        assert _predict(bundle) == 1
    assert "No space left on device" in capsys.readouterr().err
    out = home / "volumes" / "out.zarr"
    assert sum(row.status == "done" for row in read_rows(out)) == 3
    assert _predict(bundle, "--retry_failed", "true") == 0
    assert Counter(row.block for row in read_rows(out) if row.status == "done") == Counter(range(8))
    shutil.rmtree(out)
