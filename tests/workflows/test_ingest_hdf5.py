"""HDF5 as CREMI writes it becomes volumes of the same voxels, sizes and places, which are lined up by these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from terminal import refusal, tessera
from tessera.geometry.boxes import Box
from tessera.images.targets import UNKNOWN
from tessera.settings.train import AnnotatedSections, DataSettings
from tessera.storage.volumes import Volume, open_volume
from tessera.workflows.annotated import load_annotated
from volumes import grey

Capsys = pytest.CaptureFixture[str]
SHAPE, PART = (9, 50, 60), (slice(2, 8), slice(5, 45), slice(10, 60))
RAW, IDS = "volumes/raw", "volumes/labels/neuron_ids"
SIZE, OFFSET = (40.0, 4.0, 4.0), (80.0, 20.0, 40.0)
LAYOUT = ("--chunk", "[2,16,16]", "--shard", "[4,32,32]", "--engine", "serial", "--attempts", "1")


def _ids() -> NDArray[np.uint64]:
    """Touching neurons of 10 x 10 pixels, with ids as large as proofreading tools give; some voxels unknown."""
    _, y, x = np.indices(SHAPE)
    ids = (y // 10 * 7 + x // 10 + 2**50).astype(np.uint64)[PART]
    ids[:, :3] = 2**64 - 1
    return ids


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A file as CREMI's: raw, and ids of a part of it."""
    path = tmp_path / "sample_A.hdf"
    with h5py.File(path, "w") as file:
        raw = file.create_dataset(RAW, data=grey(SHAPE), chunks=(3, 13, 13), compression="gzip")
        ids = file.create_dataset(IDS, data=_ids(), chunks=(2, 11, 13), compression="gzip")
        raw.attrs["resolution"] = ids.attrs["resolution"] = SIZE
        ids.attrs["offset"] = OFFSET
        file.create_dataset("annotations/ids", data=np.arange(4))
    return path


def _words(source: Path, output: str, *more: str) -> list[str]:
    return ["ingest", "--source", str(source), "--output", output, *LAYOUT, *more]


def _ingested(capsys: Capsys, *words: Any) -> Volume:
    answer = tessera(capsys, *_words(*words))
    assert answer.code == 0, answer.err
    return open_volume(answer.out.strip())


def _voxels(volume: Volume) -> NDArray[Any]:
    return volume.read(Box.whole(volume.shape))


def test_raw_and_ids_arrive_with_their_size_and_place(capsys: Capsys, sample: Path) -> None:
    raw = _ingested(capsys, sample, "raw")
    ids = _ingested(capsys, sample, "ids", "--kind", "labels")
    np.testing.assert_array_equal(_voxels(raw), grey(SHAPE))
    np.testing.assert_array_equal(_voxels(ids), _ids())
    assert (raw.dtype, raw.voxel_size_nm, raw.translation_nm) == (np.uint8, SIZE, None)
    assert (ids.dtype, ids.voxel_size_nm, ids.translation_nm) == (np.uint64, SIZE, OFFSET)
    assert (ids.attributes["kind"], ids.attributes["dataset"], ids.shard) == ("labels", IDS, (4, 32, 32))


def test_on_ray_the_volume_is_the_same(capsys: Capsys, sample: Path, ray_session: None) -> None:
    words = ("--kind", "labels", "--engine", "ray", "--workers", "2")
    np.testing.assert_array_equal(_voxels(_ingested(capsys, sample, "ids", *words)), _ids())


def test_training_lines_ids_up_with_raw(capsys: Capsys, sample: Path) -> None:
    _ingested(capsys, sample, "raw")
    _ingested(capsys, sample, "ids", "--kind", "labels")
    chosen = [AnnotatedSections("raw", "ids", "0,5")]
    found = load_annotated(chosen, DataSettings(chosen, chosen, "instances", border_px=2))
    assert found.names == ("raw.zarr section 2", "raw.zarr section 7")
    ids = _ids()
    for raw, target, z in zip(found.raw, found.membrane, (2, 7), strict=True):
        np.testing.assert_array_equal(raw, grey(SHAPE)[z])
        known = np.full(SHAPE[1:], True)
        known[PART[1:]] = ids[z - 2] == 2**64 - 1
        np.testing.assert_array_equal(target == UNKNOWN, known)
        # Neurons touch at columns 20, 30, ... and rows 10, 20, ...: a pixel on either side is membrane.
        assert np.flatnonzero(target[13] == 1).tolist() == [19, 20, 29, 30, 39, 40, 49, 50]


def test_cells_are_scored_against_ids_of_a_part(capsys: Capsys, sample: Path, home: Path) -> None:
    with h5py.File(sample, "r+") as file:
        _, y, x = np.indices(SHAPE)
        file.create_dataset("mine", data=(y // 10 * 7 + x // 10 + 1).astype(np.uint32))
    _ingested(capsys, sample, "ids", "--kind", "labels")
    _ingested(capsys, sample, "mine", "--kind", "labels", "--dataset", "/mine", "--voxel_size_nm", "[40,4,4]")
    answer = tessera(capsys, "evaluate", "--cells", "mine", "--labels", "ids", "--engine", "serial")
    assert answer.code == 0, answer.err
    assert '"voi": 0.0' in answer.out and f'"voxels": {np.count_nonzero(_ids() < 2**64 - 1)}' in answer.out


def test_a_rerun_computes_nothing_and_a_changed_file_is_another_job(
    capsys: Capsys, sample: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _ingested(capsys, sample, "raw")
    with caplog.at_level("INFO", "tessera"):
        _ingested(capsys, sample, "raw")
    assert "12 blocks, 12 were done before" in caplog.text
    with h5py.File(sample, "r+") as file:
        file[RAW][0, 0, 0] = 77
    assert tessera(capsys, *_words(sample, "raw")).code == 2


def test_a_dry_run_touches_nothing(capsys: Capsys, sample: Path, home: Path) -> None:
    answer = tessera(capsys, *_words(sample, "raw", "--dry_run", "true"))
    assert answer.code == 0 and "12: 12 to do" in answer.out, answer
    assert not (home / "volumes").exists()


def _broken(sample: Path) -> None:
    sample.write_bytes(sample.read_bytes()[:2000])


def _without(name: str) -> Any:
    def change(sample: Path) -> None:
        with h5py.File(sample, "r+") as file:
            del file[name]

    return change


def _odd_offset(sample: Path) -> None:
    with h5py.File(sample, "r+") as file:
        file[IDS].attrs["offset"] = (1.0, 2.0)


def _elsewhere(sample: Path) -> None:
    (sample.parent / "secret").write_bytes(bytes(range(24)) * 8)
    with h5py.File(sample, "r+") as file:
        del file[IDS]
        stored = [(str(sample.parent / "secret"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(IDS, (2, 3, 4), np.uint64, external=stored)


def _linked(sample: Path) -> None:
    with h5py.File(sample.parent / "other.hdf", "w") as other:
        other.create_dataset("ids", data=np.ones((2, 3, 4), np.uint64))
    with h5py.File(sample, "r+") as file:
        del file[IDS]
        file[IDS] = h5py.ExternalLink(str(sample.parent / "other.hdf"), "ids")


def _without_size(sample: Path) -> None:
    with h5py.File(sample, "r+") as file:
        del file[IDS].attrs["resolution"]


def _floats(sample: Path) -> None:
    with h5py.File(sample, "r+") as file:
        del file[IDS]
        file.create_dataset(IDS, data=np.zeros((2, 3, 4)))


@pytest.mark.parametrize(
    ("change", "words", "told"),
    [
        (_broken, (), "sample_A.hdf: not a readable HDF5 file"),
        (
            _without(IDS),
            ("--dataset", "volumes/labels/x"),
            "has no 3D dataset volumes/labels/x; there are: volumes/raw. Give one of them as --dataset.",
        ),
        (
            _without(RAW),
            ("--kind", "image", "--dataset", "volumes/raw"),
            "there are: volumes/labels/neuron_ids.",
        ),
        (_odd_offset, (), "its attribute offset is [1.0, 2.0]: three numbers are needed, z, y, x in nanometers."),
        (_without_size, (), "neuron_ids has no attribute resolution, and voxel_size_nm is not given"),
        (_elsewhere, (), "neuron_ids keeps its voxels in other files, which whoever made it may have chosen"),
        (_linked, ("--dataset", IDS), "has no 3D dataset volumes/labels/neuron_ids; there are: volumes/raw"),
        (_floats, (), "volumes/labels/neuron_ids: dtype float64 is not supported for labels"),
        (
            lambda sample: None,
            ("--voxel_size_nm", "[40,8,8]"),
            "says resolution [40.0, 4.0, 4.0] nm, voxel_size_nm=[40.0, 8.0, 8.0] says otherwise",
        ),
        (
            lambda sample: None,
            ("--offset_nm", "[0,20,40]"),
            "says offset [80.0, 20.0, 40.0] nm, offset_nm=[0.0, 20.0, 40.0] says otherwise",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    capsys: Capsys, home: Path, sample: Path, change: Any, words: tuple[str, ...], told: str
) -> None:
    change(sample)
    assert told in refusal(capsys, home, *_words(sample, "v", "--kind", "labels", *words))


def test_slices_take_no_dataset_and_may_have_an_offset(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "stack.tif", grey(SHAPE), photometric="minisblack")
    size = ("--voxel_size_nm", "[40,4,4]")
    told = refusal(capsys, home, *_words(tmp_path / "stack.tif", "v", "--dataset", "raw", *size))
    assert "dataset=raw but " in told and "is no HDF5 file (.h5, .hdf, .hdf5, .he5)" in told
    placed = _ingested(capsys, tmp_path / "stack.tif", "v", "--offset_nm", "[40,4,4]", *size)
    assert placed.translation_nm == (40.0, 4.0, 4.0)
