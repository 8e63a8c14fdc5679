"""A volume of another voxel size is resampled on request alone, as it is read, and never silently."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles import make_bundle
from terminal import refusal, tessera
from tessera.geometry.boxes import Box
from tessera.images.quantise import decode
from tessera.model.predictor import load_predictor, predict_volume
from tessera.settings.pyramid import PyramidSettings
from tessera.storage.identity import identity
from tessera.storage.resampled import resampled
from tessera.storage.volumes import Volume, open_volume
from tessera.workflows.panels import SectionPanels
from tessera.workflows.pyramid import pyramid
from volumes import grey, mask, put_volume

Capsys = pytest.CaptureFixture[str]
SHAPE = (3, 61, 90)
MODEL_NM = (50.0, 6.0, 6.0)
SERIAL = ("--engine", "serial", "--attempts", "1")
LAYOUT = ("--chunk", "[1, 16, 16]", "--shard", "[1, 16, 32]")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of voxels of 50 x 6 x 6 nm."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", voxel_size_nm=MODEL_NM)


@pytest.fixture
def raw(home: Path) -> Path:
    """A volume of 50 x 4 x 4 nm, one of its sections invalid."""
    return put_volume(home / "volumes" / "raw.zarr", grey(SHAPE), kind="image", invalid_sections=[1])


def predicted(capsys: Capsys, bundle: Path, output: str, *more: object, volume: str = "raw") -> Volume:
    words = ("predict", "--volume", volume, "--model", bundle, "--output", output, "--output_dtype", "float32")
    answer = tessera(capsys, *words, "--resample", "true", *SERIAL, *more)
    assert answer.code == 0, answer.err
    return open_volume(answer.out.strip())


def test_any_partition_gives_the_prediction_of_the_resampled_sections(bundle: Path, raw: Path, capsys: Capsys) -> None:
    read = resampled(open_volume(raw), MODEL_NM)
    assert read.shape == (3, 41, 60)
    network, contract = load_predictor(bundle)
    whole = predict_volume(network, read.read(Box.whole(read.shape)), contract)
    whole[1] = 0
    partitions: tuple[tuple[object, ...], ...] = (
        ("--tile", "[1, 16, 16]", *LAYOUT),
        ("--tile", "[2, 40, 24]", *LAYOUT, "--block", "[2, 32, 32]"),
        (
            "--tile",
            "[1, 512, 512]",
        ),
    )
    for number, words in enumerate(partitions):
        output = predicted(capsys, bundle, f"out{number}", *words)
        np.testing.assert_allclose(decode(output.array[:]), whole, atol=1e-5)
    region = predicted(capsys, bundle, "region", "--roi", "0:2,7:33,5:58", *LAYOUT)
    np.testing.assert_allclose(region.array[:], whole[0:2, 7:33, 5:58], atol=1e-5)
    assert len(np.unique(np.round(whole, 3))) > 50, "a flat prediction would agree with anything"


def test_the_output_has_the_model_s_voxels_in_their_place_and_says_how(
    bundle: Path, raw: Path, home: Path, capsys: Capsys, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tessera"):
        output = predicted(capsys, bundle, "out", "--roi_nm", "50:150, 60:242, 33:100")
    assert "reading level 0 resampled from (50.0, 4.0, 4.0) to the model's (50.0, 6.0, 6.0) nm" in caplog.text
    assert output.voxel_size_nm == MODEL_NM
    # Rounded outward: rows 10-40 begin at 60 nm, columns 5-16 at 30 nm. Its centres are 1 nm off the stored ones'.
    assert output.shape == (2, 31, 12)
    assert output.translation_nm == (50.0, 61.0, 31.0)
    assert output.attributes["roi"] == [[1, 10, 5], [3, 41, 17]]
    assert output.attributes["resampled"] == {"rule": "linear", "from_nm": [50.0, 4.0, 4.0], "to_nm": list(MODEL_NM)}
    assert output.attributes["invalid_sections"] == [0]
    truth = put_volume(home / "volumes" / "truth.zarr", mask(output.shape), MODEL_NM, kind="labels")
    shown = SectionPanels(output, open_volume(truth)).of(1)["raw"]
    np.testing.assert_array_equal(shown, resampled(open_volume(raw), MODEL_NM).section(2)[10:41, 5:17])


def test_it_is_refused_unless_asked_for_and_another_job_s_output_is_never_mixed(
    bundle: Path, raw: Path, home: Path, tmp_path: Path, capsys: Capsys
) -> None:
    words = ("predict", "--volume", "raw", "--model", bundle, "--output", "out", *SERIAL)
    told = refusal(capsys, home, *words)
    assert "voxel size is (50.0, 4.0, 4.0) nm, the model wants (50.0, 6.0, 6.0) nm" in told
    assert told.endswith("To read it at the model's voxel size, say --resample true.")
    own = make_bundle(tmp_path / "own")
    plain = ("predict", "--volume", "raw", "--model", own, "--output", "fits", *SERIAL)
    assert tessera(capsys, *plain).code == 0
    again = tessera(capsys, *plain, "--resample", "true")
    assert again.code == 0 and "resampled" not in open_volume(home / "volumes" / "fits.zarr").attributes
    # 100 x 66 nm of 4 nm: of the same extents as at 6 nm, accepted as they are.
    put_volume(home / "volumes" / "small.zarr", grey((3, 1, 1)), kind="image")
    same = ("predict", "--volume", "small", "--model", bundle, "--output", "s", *SERIAL)
    assert tessera(capsys, *same, "--resample", "true").code == 0
    told = tessera(capsys, *same, "--accept_mismatch", "true").err
    assert "is a volume with voxel_size_nm (50.0, 6.0, 6.0), not (50.0, 4.0, 4.0): two jobs' results" in told


def test_of_a_pyramid_the_coarsest_level_that_is_fine_enough_is_read(
    bundle: Path, home: Path, tmp_path: Path, capsys: Capsys
) -> None:
    put_volume(home / "volumes" / "fine.zarr", grey((2, 120, 160)), (50.0, 2.5, 2.5), kind="image")
    pyramid(PyramidSettings(volume="fine", levels=2, engine="serial"))
    output = predicted(capsys, bundle, "out", volume="fine")
    level = open_volume(home / "volumes" / "fine.zarr", level=1)
    assert level.voxel_size_nm == (50.0, 5.0, 5.0)
    assert (output.attributes["input_level"], output.attributes["resampled"]["from_nm"]) == (1, [50.0, 5.0, 5.0])
    read = resampled(level, MODEL_NM)
    network, contract = load_predictor(bundle)
    whole = predict_volume(network, read.read(Box.whole(read.shape)), contract)
    np.testing.assert_allclose(output.array[:], whole, atol=1e-5)
    # Level 1's own voxel 0 begins with the volume: so does the output's.
    assert output.translation_nm == pytest.approx((0.0, (6 - 2.5) / 2, (6 - 2.5) / 2))
    asked = predicted(capsys, bundle, "asked", "--level", "0", volume="fine")
    assert asked.attributes["resampled"]["from_nm"] == [50.0, 2.5, 2.5]
    assert asked.shape == output.shape and asked.translation_nm == pytest.approx(output.translation_nm)


def test_larger_voxels_than_the_model_s_are_said_to_lack_detail(
    bundle: Path, home: Path, capsys: Capsys, caplog: pytest.LogCaptureFixture
) -> None:
    put_volume(home / "volumes" / "coarse.zarr", grey((1, 20, 30)), (50.0, 12.0, 12.0), kind="image")
    with caplog.at_level(logging.WARNING, "tessera"):
        output = predicted(capsys, bundle, "out", volume="coarse")
    assert output.shape == (1, 40, 60)
    assert "its voxels are larger than the model's: what they do not show is made up" in caplog.text


def test_an_unknown_voxel_size_and_channels_are_not_resampled(bundle: Path, home: Path, capsys: Capsys) -> None:
    put_volume(home / "volumes" / "two.zarr", grey((2, *SHAPE)))
    words = ("predict", "--volume", "two", "--model", bundle, "--output", "out", "--resample", "true", *SERIAL)
    assert "axes are 'czyx', the model wants 'zyx'" in refusal(capsys, home, *words)
    with pytest.raises(ValueError, match=r"two\.zarr of shape \(2, 3, 61, 90\).* cannot be resampled"):
        resampled(open_volume(home / "volumes" / "two.zarr"), MODEL_NM)


# The volume itself


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_box_of_a_resampled_volume_is_that_of_the_whole(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = _shared(tmp_path_factory)
    size = data.draw(st.sampled_from([(50.0, 6.0, 6.0), (75.0, 3.0, 9.0), (20.0, 4.02, 31.0)]))
    volume = resampled(open_volume(path), size)
    starts = [data.draw(st.integers(0, n - 1)) for n in volume.shape]
    stops = [data.draw(st.integers(a + 1, n)) for a, n in zip(starts, volume.shape, strict=True)]
    box = Box(tuple(starts), tuple(stops))
    whole = volume.read(Box.whole(volume.shape))
    np.testing.assert_array_equal(volume.read(box), whole[box.slices])


_MADE: dict[str, Path] = {}


def _shared(tmp_path_factory: Any) -> Path:
    if "path" not in _MADE:
        _MADE["path"] = put_volume(tmp_path_factory.mktemp("shared") / "v.zarr", grey(SHAPE), invalid_sections=[1])
    return _MADE["path"]


def test_a_resampled_voxel_lies_where_its_metadata_say(tmp_path: Path) -> None:
    """A ramp along x tells where each voxel's centre is: its value is the coordinate."""
    x_nm = np.arange(120, dtype=np.float32) * 4.0
    path = put_volume(tmp_path / "ramp.zarr", np.broadcast_to(x_nm, (1, 8, 120)).copy())
    for wanted in (2.0, 6.0, 8.0, 20.0):
        volume = resampled(open_volume(path), (50.0, 4.0, wanted))
        at = (volume.translation_nm or (0.0, 0.0, 0.0))[2] + wanted * np.arange(volume.shape[2])
        inner = (at >= wanted) & (at <= 476 - wanted)
        np.testing.assert_allclose(volume.section(0)[0][inner], at[inner], atol=0.5)


def test_a_section_made_of_an_invalid_one_is_invalid(tmp_path: Path) -> None:
    path = put_volume(tmp_path / "v.zarr", grey((6, 8, 8)), invalid_sections=[2])
    volume = open_volume(path)
    assert resampled(volume, (50.0, 6.0, 6.0)).invalid_sections == {2}
    assert resampled(volume, (25.0, 4.0, 4.0)).invalid_sections == {3, 4, 5, 6}
    assert resampled(volume, (100.0, 4.0, 4.0)).invalid_sections == {0, 1}


def test_its_identity_is_the_stored_volume_s_and_it_is_not_written_to(tmp_path: Path) -> None:
    volume = open_volume(put_volume(tmp_path / "v.zarr", grey(SHAPE)))
    read = resampled(volume, MODEL_NM)
    assert identity(read) == identity(volume) and read.stored is volume and volume.stored is volume
    assert resampled(volume, (50.2, 4.01, 4.0)) is volume, "within 1% a size counts as the same"
    with pytest.raises(ValueError, match="was opened for reading"):
        read.write(Box.whole(read.shape), np.zeros(read.shape, np.uint8))
    with pytest.raises(ValueError, match=r"it needs one interval per axis inside \[0:3, 0:41, 0:60\]"):
        read.read(Box((0, 0, 0), (3, 42, 60)))


def test_what_is_not_stored_is_never_resampled(bundle: Path, raw: Path, home: Path, capsys: Capsys) -> None:
    next(file for file in sorted((raw / "0" / "c").rglob("*")) if file.is_file()).unlink()
    words = ("predict", "--volume", "raw", "--model", bundle, "--output", "out", "--resample", "true", *SERIAL)
    assert "does not store all of its chunks, and is to be resampled" in refusal(capsys, home, *words)
