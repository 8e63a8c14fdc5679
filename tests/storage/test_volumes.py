"""Promises about volumes: what is written reads back, and no write can race with another task's."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models import open_ome_zarr
from ome_zarr_models.v05.image import Image

from tessera.geometry.boxes import Box
from tessera.storage.volumes import Volume, create_volume, open_volume, update_attributes

SHAPE, CHUNK, SHARD = (7, 20, 21), (2, 4, 4), (4, 8, 8)
VOXELS = np.random.default_rng(0).integers(1, 256, SHAPE, dtype=np.uint8)
WHOLE = Box.whole(SHAPE)


def make(path: Path, **changes: Any) -> Volume:
    options = {"voxel_size_nm": (50, 4, 4), "chunk": CHUNK, "shard": SHARD} | changes
    return create_volume(path, options.pop("shape", SHAPE), options.pop("dtype", np.uint8), **options)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int16", "uint64", "float32"])
def test_what_is_written_reads_back_in_another_opening(tmp_path: Path, dtype: str) -> None:
    written = VOXELS.astype(dtype)
    volume = make(tmp_path / "a.zarr", dtype=dtype, attributes={"channel": "membrane"})
    volume.write(WHOLE, written)
    again = open_volume(tmp_path / "a.zarr")
    assert (again.shape, again.dtype, again.axes) == (SHAPE, np.dtype(dtype), ("z", "y", "x"))
    assert (again.chunk, again.shard, again.voxel_size_nm) == (CHUNK, SHARD, (50.0, 4.0, 4.0))
    assert again.attributes["channel"] == "membrane"
    read = again.read(WHOLE)
    assert read.dtype == written.dtype and np.array_equal(read, written)
    read[:] = 0
    assert np.array_equal(again.read(WHOLE), written)


def test_a_section_is_one_plane_of_its_own(tmp_path: Path) -> None:
    volume = make(tmp_path / "a.zarr")
    volume.write(WHOLE, VOXELS)
    section = volume.section(5)
    np.testing.assert_array_equal(section, VOXELS[5])
    section[:] = 0
    np.testing.assert_array_equal(volume.section(5), VOXELS[5])


def test_what_is_created_is_a_valid_ome_zarr(tmp_path: Path) -> None:
    make(tmp_path / "a.zarr", name="em")
    make(tmp_path / "c.zarr", shape=(2, *SHAPE), channels=["membrane", "cell"])
    for name in ("a.zarr", "c.zarr"):
        image = open_ome_zarr(zarr.open_group(tmp_path / name, mode="r"))
        assert isinstance(image, Image) and image.ome_zarr_version == "0.5"
    assert open_volume(tmp_path / "c.zarr").axes == ("c", "z", "y", "x")
    assert open_volume(tmp_path / "c.zarr").shard == (1, *SHARD)


def test_shards_are_compressed_with_zstd_and_zeros_are_not_stored(tmp_path: Path) -> None:
    volume = make(tmp_path / "a.zarr")
    volume.write(WHOLE, np.zeros(SHAPE, np.uint8))
    assert not list((tmp_path / "a.zarr" / "0").rglob("c/*/*/*"))
    assert not volume.read(WHOLE).any()
    volume.write(WHOLE, VOXELS)
    assert len(list((tmp_path / "a.zarr" / "0").rglob("c/*/*/*"))) == 2 * 3 * 3
    codecs = json.loads((tmp_path / "a.zarr" / "0" / "zarr.json").read_text())["codecs"][0]["configuration"]["codecs"]
    assert {"name": "zstd", "configuration": {"level": 1, "checksum": False}} in codecs


def test_writing_zeros_over_a_shard_clears_it(tmp_path: Path) -> None:
    volume, box = make(tmp_path / "a.zarr"), Box((0, 0, 0), SHARD)
    volume.write(box, np.ones(SHARD, np.uint8))
    volume.write(box, np.zeros(SHARD, np.uint8))
    assert not volume.read(box).any()


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_box_reads_what_slicing_reads(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "read.zarr"
    volume = make(path, exist_ok=True)
    if not volume.read(Box((0, 0, 0), (1, 1, 1))).any():
        volume.write(WHOLE, VOXELS)
    start = tuple(data.draw(st.integers(0, n)) for n in SHAPE)
    stop = tuple(data.draw(st.integers(a, n)) for a, n in zip(start, SHAPE, strict=True))
    box = Box(start, stop)
    assert np.array_equal(volume.read(box), VOXELS[box.slices])


@pytest.mark.parametrize(
    ("box", "nearest"),
    [
        (Box((0, 0, 0), (4, 8, 4)), r"\[0:4, 0:8, 0:8\]"),
        (Box((2, 0, 0), (4, 8, 8)), r"\[0:4, 0:8, 0:8\]"),
        (Box((4, 16, 16), (6, 20, 21)), r"\[4:7, 16:20, 16:21\]"),
        (Box((0, 0, 0), (1, 1, 1)), r"\[0:4, 0:8, 0:8\]"),
        (Box((4, 0, 0), (4, 8, 8)), r"\[4:7, 0:8, 0:8\]"),
    ],
)
def test_a_write_of_part_of_a_shard_is_refused_and_the_legal_box_named(tmp_path: Path, box: Box, nearest: str) -> None:
    volume = make(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=rf"not whole shards.*loses another task's data. Write {nearest} instead"):
        volume.write(box, np.ones(box.shape, np.uint8))


def test_writes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    volume, box = make(tmp_path / "a.zarr"), Box((0, 0, 0), SHARD)
    with pytest.raises(ValueError, match=r"cast silently. Give shape \(4, 8, 8\) and dtype uint8"):
        volume.write(box, np.ones(SHARD, np.float32))
    with pytest.raises(ValueError, match="broadcast"):
        volume.write(box, np.ones((1, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"one interval per axis inside \[0:7, 0:20, 0:21\]"):
        volume.write(Box((4, 16, 16), (8, 24, 24)), np.ones(SHARD, np.uint8))
    with pytest.raises(ValueError, match=r"opened for reading: use open_volume\(path, writable=True\)"):
        open_volume(tmp_path / "a.zarr").write(box, np.ones(SHARD, np.uint8))


@pytest.mark.parametrize("box", [Box((-1, 0, 0), (1, 1, 1)), Box((0, 0, 0), (8, 1, 1)), Box((0, 0), (1, 1))])
def test_reads_outside_the_volume_are_refused(tmp_path: Path, box: Box) -> None:
    with pytest.raises(ValueError, match="Clip it, and mirror what lies outside"):
        make(tmp_path / "a.zarr").read(box)


def test_a_volume_travels_to_another_process(tmp_path: Path) -> None:
    volume = make(tmp_path / "a.zarr")
    volume.write(WHOLE, VOXELS)
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(WHOLE), VOXELS)


# What others wrote


def plain(path: Path, version: int, **options: Any) -> Path:
    array = zarr.create_array(
        path, shape=SHAPE, chunks=CHUNK, dtype=options.pop("dtype", "u1"), zarr_format=version, **options
    )
    array[:] = VOXELS
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_array_has_axes_z_y_x_and_an_unknown_voxel_size(tmp_path: Path, version: int) -> None:
    volume = open_volume(plain(tmp_path / "a.zarr", version))
    assert (volume.axes, volume.voxel_size_nm, volume.shard) == (("z", "y", "x"), None, CHUNK)
    assert volume.attributes == {} and volume.invalid_sections == frozenset()
    assert np.array_equal(volume.read(WHOLE), VOXELS)


def test_big_endian_voxels_are_read_in_native_order(tmp_path: Path) -> None:
    volume = open_volume(plain(tmp_path / "a.zarr", 2, dtype=">u2"))
    assert volume.dtype == np.dtype("uint16") and volume.read(WHOLE).dtype.isnative
    assert np.array_equal(volume.read(WHOLE), VOXELS)


def ome04(path: Path, axes: str = "zyx", unit: str = "micrometer") -> Path:
    group = zarr.create_group(path, zarr_format=2)
    shape = (1,) * (len(axes) - 3) + SHAPE
    group.create_array("s0", shape=shape, dtype="u1", chunks=shape)[:] = VOXELS.reshape(shape)
    scale = [1.0] * (len(axes) - 3) + [0.05, 0.004, 0.004]
    kinds = {"c": "channel", "t": "time"}
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [
                {"name": a} | ({"type": kinds[a]} if a in kinds else {"type": "space", "unit": unit}) for a in axes
            ],
            "datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
        }
    ]
    return path


def test_ome_zarr_0_4_opens_at_its_finest_level_in_nanometers(tmp_path: Path) -> None:
    volume = open_volume(ome04(tmp_path / "a.zarr"))
    assert (volume.voxel_size_nm, volume.shape) == ((50.0, 4.0, 4.0), SHAPE)
    assert np.array_equal(volume.read(WHOLE), VOXELS)
    channels = open_volume(ome04(tmp_path / "c.zarr", "czyx"))
    assert np.array_equal(channels.read(Box.whole((1, *SHAPE)))[0], VOXELS)


def _tiff(path: Path) -> Path:
    tifffile.imwrite(path, VOXELS)
    return path


def _slices(path: Path) -> Path:
    path.mkdir()
    tifffile.imwrite(path / "s1.tif", VOXELS[0])
    return path


def _bytes(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "notes.txt").write_text("x")
    return path


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def _nested(path: Path) -> Path:
    plain(path / "raw", 3)
    (path / "zarr.json").unlink(missing_ok=True)
    return path


def _bare_group(path: Path) -> Path:
    zarr.create_group(path).create_array("raw", shape=SHAPE, dtype="u1")
    return path


def _without_level(path: Path) -> Path:
    import shutil

    shutil.rmtree(ome04(path) / "s0")
    return path


def _array(shape: tuple[int, ...], dtype: str = "u1", names: tuple[str, ...] | None = None) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        zarr.create_array(path, shape=shape, dtype=dtype, dimension_names=names, chunks=(1,) * len(shape))
        return path

    return write


def _corrupt(path: Path) -> Path:
    make(path)
    (path / "zarr.json").write_text("{")
    return path


UNREADABLE = {
    "missing": (lambda path: path, FileNotFoundError, "does not exist: give the folder of a Zarr volume"),
    "tiff": (_tiff, ValueError, "is a TIFF file, not a Zarr volume: run `tessera ingest` first"),
    "slices": (_slices, ValueError, "is a folder of 1 slices, not a Zarr volume: run `tessera ingest` first"),
    "hdf5": (_bytes(b"\x89HDF\r\n\x1a\n..."), ValueError, "HDF5 file .not supported yet: convert it to Zarr"),
    "other file": (_bytes(b"x"), ValueError, "is a file, not a Zarr volume"),
    "empty file": (_bytes(b""), ValueError, "is a file, not a Zarr volume"),
    "empty folder": (_empty, ValueError, "is an empty folder, not a Zarr volume"),
    "other folder": (_folder, ValueError, "holds notes.txt, not a Zarr volume. Give the folder that holds zarr.json"),
    "one folder too high": (_nested, ValueError, "Did you mean .*raw"),
    "group without image": (_bare_group, ValueError, "no OME-Zarr 0.4 or 0.5 image. It holds raw: did you mean"),
    "level missing": (_without_level, ValueError, "level 's0' of its metadata is not there"),
    "corrupt metadata": (_corrupt, ValueError, "its Zarr metadata cannot be read"),
    "2D": (_array((5, 5)), ValueError, r"shape \(5, 5\).*a volume has axes z, y, x"),
    "4D unnamed": (_array((2, 5, 5, 5)), ValueError, "dimension names absent: .*read transposed"),
    "transposed": (_array((5, 5, 5), names=("x", "y", "z")), ValueError, r"names \['x', 'y', 'z'\]"),
    "five axes": (lambda path: ome04(path, "tczyx"), ValueError, "axes t, c, z, y, x: only"),
    "unknown unit": (lambda path: ome04(path, unit="parsec"), ValueError, "unit 'parsec'"),
    "complex": (_array((5, 5, 5), "c8"), ValueError, "dtype complex64 is not supported. Convert it"),
    "empty": (_array((0, 5, 5)), ValueError, r"shape \(0, 5, 5\) holds no voxel"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_is_not_a_volume_is_refused_with_what_to_do(tmp_path: Path, case: str) -> None:
    write, error, message = UNREADABLE[case]
    path = write(tmp_path / "v.zarr")
    with pytest.raises(error, match=message):
        open_volume(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (Path("s3://bucket/a.zarr"), r"has cut a slash from: give it as text, s3://bucket/key"),
        ("az://bucket/a.zarr", r"az:// is no kind of store that tessera reads \(s3, gs, http, https\)"),
        ("s3://bucket", "names no volume: give bucket and key"),
        ("s3://bucket/em/../../a.zarr", "names no volume: give bucket and key"),
        ("s3:///a.zarr", "names no volume: give bucket and key"),
        ("https://host/a.zarr?X-Amz-Signature=abc", r"host/a.zarr: a URL with \? or # is not supported"),
    ],
)
def test_a_url_that_names_no_volume_is_refused_with_one_that_does(url: str | Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_volume(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="holds credentials: they would be printed") as told:
        open_volume("s3://AKIAPLANTED:planted-secret@bucket/a.zarr")
    assert "PLANTED" not in str(told.value) and "planted" not in str(told.value)


def test_a_web_server_is_not_written_to() -> None:
    with pytest.raises(ValueError, match="web servers are read only"):
        open_volume("http://127.0.0.1:9/a.zarr", writable=True)


# Creating


def test_an_absent_or_empty_folder_is_created_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    make(tmp_path / "a.zarr")
    make(tmp_path / "new" / "b.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "new"]


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr.Group, "create_array", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def test_the_same_volume_is_reopened_with_its_voxels_and_id(tmp_path: Path) -> None:
    first = make(tmp_path / "a.zarr")
    first.write(WHOLE, VOXELS)
    again = make(tmp_path / "a.zarr", exist_ok=True)
    assert again.writable and np.array_equal(again.read(WHOLE), VOXELS)
    assert again.attributes["id"] == first.attributes["id"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (7, 20, 22)}, r"shape \(7, 20, 21\), not \(7, 20, 22\)"),
        ({"dtype": "u2"}, "dtype uint8, not uint16"),
        ({"shard": (2, 8, 8)}, r"shard \(4, 8, 8\), not \(2, 8, 8\)"),
        ({"voxel_size_nm": (40, 4, 4)}, r"voxel_size_nm \(50.0, 4.0, 4.0\), not"),
    ],
)
def test_a_different_volume_is_not_reopened(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path / "a.zarr")
    with pytest.raises(FileExistsError, match=message + ".*two jobs' results would be mixed"):
        make(tmp_path / "a.zarr", **changes, exist_ok=True)


@pytest.mark.parametrize(
    ("write", "exist_ok", "message"),
    [
        (make, False, "is a volume that tessera made.*say `--overwrite true`"),
        (ome04, True, "is a Zarr array or group that tessera did not make"),
        (_folder, True, "is a folder that holds notes.txt that tessera did not make"),
        (_slices, True, "is a folder of 1 slices that tessera did not make"),
        (_tiff, True, "is a TIFF file that tessera did not make.*Give another output"),
        (_corrupt, True, "that tessera did not make"),
    ],
)
def test_what_is_already_there_is_never_overwritten(
    tmp_path: Path, write: Callable[[Path], Any], exist_ok: bool, message: str
) -> None:
    write(tmp_path / "a.zarr")
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=message):
        make(tmp_path / "a.zarr", exist_ok=exist_ok)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "complex64"}, "dtype complex64 is not supported"),
        ({"shape": (20, 21)}, "a volume has axes z, y, x"),
        ({"shape": (0, 20, 21)}, "at least 1 voxel long"),
        ({"voxel_size_nm": (4, 4)}, "three positive sizes"),
        ({"voxel_size_nm": (50, 4, -4)}, "three positive sizes"),
        ({"shard": (3, 8, 8)}, r"not a multiple of chunk.*Try shard \(4, 8, 8\)"),
        ({"attributes": {"when": Path("x")}}, "attribute when=.*is not JSON"),
        ({"channels": ["membrane", "cell"]}, "without c"),
        ({"ome_zarr": "0.4"}, r"shard=\[4, 8, 8\] for OME-Zarr 0.4, which has no shards.*Leave the shard out"),
    ],
)
def test_illegal_volumes_are_not_created(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "a.zarr", **changes)
    assert list(tmp_path.iterdir()) == []


# Attributes


def test_attributes_are_updated_beside_the_others_and_the_image_metadata(tmp_path: Path) -> None:
    make(tmp_path / "a.zarr", attributes={"run": "r1", "threshold": 0.5})
    update_attributes(tmp_path / "a.zarr", threshold=0.4, invalid_sections=[2, 5])
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.attributes["run"] == "r1" and volume.attributes["threshold"] == 0.4
    assert volume.invalid_sections == frozenset({2, 5})
    assert volume.voxel_size_nm == (50.0, 4.0, 4.0)


@pytest.mark.parametrize("value", [np.float32(1), {1, 2}, float("nan")])
def test_attributes_that_are_not_json_are_refused_and_nothing_changes(tmp_path: Path, value: object) -> None:
    make(tmp_path / "a.zarr")
    before = (tmp_path / "a.zarr" / "zarr.json").read_bytes()
    with pytest.raises(ValueError, match=r"attribute score=.*is not JSON.*Use plain numbers"):
        update_attributes(tmp_path / "a.zarr", score=value)
    assert (tmp_path / "a.zarr" / "zarr.json").read_bytes() == before


def test_others_volumes_keep_their_attributes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no volume of tessera's"):
        update_attributes(ome04(tmp_path / "a.zarr"), run="r1")
