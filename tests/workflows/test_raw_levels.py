"""What a prediction reads is never silent: the level of the pyramid, a voxel size that the user says, the contrast."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from bundles import make_bundle
from terminal import refusal, tessera
from tessera.images.quantise import quantise
from tessera.model.predictor import load_predictor, predict_volume
from tessera.settings.pyramid import PyramidSettings
from tessera.storage.volumes import open_volume
from tessera.workflows.pyramid import pyramid
from volumes import grey, put_volume

Capsys = pytest.CaptureFixture[str]
SHAPE = (2, 64, 96)
SERIAL = ("--engine", "serial", "--attempts", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of voxels of 50 x 8 x 8 nm."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", voxel_size_nm=(50.0, 8.0, 8.0))


@pytest.fixture
def raw(home: Path) -> Path:
    """A volume of 4 nm with a pyramid: level 1 is the model's."""
    path = put_volume(home / "volumes" / "raw.zarr", grey(SHAPE), kind="image")
    pyramid(PyramidSettings(volume="raw", levels=2, engine="serial"))
    return path


def predicted(capsys: Capsys, bundle: Path, volume: object, output: str, *more: object) -> Any:
    words = ("predict", "--volume", volume, "--model", bundle, "--output", output, *SERIAL, *more)
    answer = tessera(capsys, *words)
    assert answer.code == 0, answer.err
    return open_volume(answer.out.strip())


def assert_is_prediction_of(output: Any, voxels: np.ndarray, bundle: Path) -> None:
    network, contract = load_predictor(bundle)
    expected = quantise(predict_volume(network, voxels, contract)).astype(int)
    assert np.abs(output.array[:].astype(int) - expected).max() <= 1
    assert len(np.unique(expected)) > 50, "a flat prediction would agree with anything"


def test_the_level_of_the_model_s_voxel_size_is_read_and_said(
    bundle: Path, raw: Path, home: Path, capsys: Capsys, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tessera"):
        output = predicted(capsys, bundle, "raw", "out", "--roi", "0:2,8:32,0:48")
    assert "reading level 1, whose voxel size is the model's (50.0, 8.0, 8.0) nm" in caplog.text
    assert (output.attributes["input_level"], output.voxel_size_nm) == (1, (50.0, 8.0, 8.0))
    # Its voxel 0 is voxel 8 of level 1, whose own voxel 0 is half a fine voxel off.
    assert output.translation_nm == (0.0, 2.0 + 8 * 8.0, 2.0)
    level = open_volume(raw, level=1).array[:]
    assert_is_prediction_of(predicted(capsys, bundle, "raw", "whole"), level, bundle)


def test_a_level_that_does_not_fit_is_refused_with_both_sides(
    bundle: Path, raw: Path, home: Path, tmp_path: Path, capsys: Capsys
) -> None:
    words = ("predict", "--volume", "raw", "--output", "out", *SERIAL, "--model")
    told = refusal(capsys, home, *words, bundle, "--level", "0")
    assert "voxel size is (50.0, 4.0, 4.0) nm, the model wants (50.0, 8.0, 8.0) nm" in told
    odd = make_bundle(tmp_path / "odd", voxel_size_nm=(50.0, 6.0, 6.0))
    assert "voxel size is (50.0, 4.0, 4.0) nm, the model wants (50.0, 6.0, 6.0) nm" in refusal(
        capsys, home, *words, odd
    )
    told = refusal(capsys, home, *words, bundle, "--level", "3")
    assert "has no level 3 but 3: 0 ([50.0, 4.0, 4.0] nm), 1 ([50.0, 8.0, 8.0] nm), 2 (" in told


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_array_is_predicted_once_its_voxel_size_is_said(
    bundle: Path, home: Path, tmp_path: Path, capsys: Capsys, version: int
) -> None:
    plain = tmp_path / "plain.zarr"
    zarr.create_array(plain, shape=SHAPE, chunks=(1, 32, 32), dtype="u1", zarr_format=version)[:] = grey(SHAPE)
    words = ("predict", "--volume", plain, "--model", bundle, "--output", "out", *SERIAL)
    assert "voxel size is unknown, the model was trained on (50.0, 8.0, 8.0) nm" in refusal(capsys, home, *words)
    output = predicted(capsys, bundle, plain, "out", "--voxel_size_nm", "[50, 8, 8]")
    assert output.voxel_size_nm == (50.0, 8.0, 8.0)
    assert_is_prediction_of(output, grey(SHAPE), bundle)


def test_a_volume_is_not_told_another_voxel_size_than_its_own(
    bundle: Path, raw: Path, home: Path, capsys: Capsys
) -> None:
    words = ("predict", "--volume", "raw", "--model", bundle, "--output", "out", *SERIAL)
    told = refusal(capsys, home, *words, "--voxel_size_nm", "[50, 8, 8]")
    assert "says that its voxels are [50.0, 4.0, 4.0] nm, voxel_size_nm=[50.0, 8.0, 8.0] says otherwise" in told


def test_inverted_contrast_is_turned_back_kept_with_the_output_and_part_of_its_key(
    bundle: Path, home: Path, capsys: Capsys
) -> None:
    put_volume(home / "volumes" / "bright.zarr", 255 - grey(SHAPE), (50.0, 8.0, 8.0))
    output = predicted(capsys, bundle, "bright", "out", "--invert_contrast", "true")
    assert output.attributes["invert_contrast"] is True
    assert_is_prediction_of(output, grey(SHAPE), bundle)
    words = ("predict", "--volume", "bright", "--model", bundle, "--output", "out", *SERIAL)
    assert "belongs to another job: invert_contrast was True, now False" in tessera(capsys, *words).err
    put_volume(home / "volumes" / "f.zarr", grey(SHAPE).astype(np.float32), (50.0, 8.0, 8.0))
    floats = ("predict", "--volume", "f", "--model", bundle, "--output", "o", "--invert_contrast", "true", *SERIAL)
    assert "no largest value is stated to subtract them from" in refusal(capsys, home, *floats)


def test_an_output_of_version_0_4_has_the_same_voxels_and_names_its_channel(
    bundle: Path, raw: Path, capsys: Capsys
) -> None:
    new = predicted(capsys, bundle, "raw", "new")
    old = predicted(
        capsys, bundle, "raw", "old", "--ome_zarr", "0.4", "--chunk", "[1, 16, 16]", "--block", "[2, 32, 32]"
    )
    assert (old.zarr_format, old.shard, old.chunk) == (2, (1, 16, 16), (1, 16, 16))
    assert np.abs(old.array[:].astype(int) - new.array[:].astype(int)).max() <= 1
    for attributes in (zarr.open_group(old.url).attrs.asdict(), zarr.open_group(new.url).attrs.asdict()["ome"]):
        (channel,) = attributes["omero"]["channels"]
        assert channel["label"] == "membrane probability"
        assert (channel["window"]["min"], channel["window"]["max"]) == (0, 255)
