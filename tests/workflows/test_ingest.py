"""Slices become volumes: the same from TIFF and PNG, serially and on Ray, and nothing is lost or made up."""

from __future__ import annotations

import logging
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr_models import open_ome_zarr

from terminal import refusal, tessera
from tessera.geometry.boxes import Box
from tessera.storage.ledger import read_rows
from tessera.storage.volumes import Volume, open_volume
from volumes import grey

Capsys = pytest.CaptureFixture[str]
SHAPE = (12, 40, 60)
LAYOUT = ("--chunk", "[2,16,16]", "--shard", "[4,32,32]")  # 3 x 2 x 2 shards
GREY = grey(SHAPE)
SHARDS = 12


def _tiff(path: Path, stack: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, stack, **({"photometric": "minisblack"} | options))
    return path


def _pngs(folder: Path, stack: NDArray[Any]) -> Path:
    """Slices s2.png, s3.png, ..., s13.png: by their letters s10 would come before s2."""
    folder.mkdir()
    for number, section in enumerate(stack, 2):
        (folder / f"s{number}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(section)))
    return folder


def _words(source: Path | str, output: str = "v", *more: str) -> list[str]:
    runner = [] if "--engine" in more else ["--engine", "serial", "--attempts", "1"]
    size = [] if "--voxel_size_nm" in more else ["--voxel_size_nm", "[50,4,4]"]
    return ["ingest", "--source", str(source), "--output", output, *size, *runner, *more]


def _ingested(capsys: Capsys, source: Path, output: str = "v", *more: str) -> Volume:
    answer = tessera(capsys, *_words(source, output, *more))
    assert answer.code == 0, answer.err
    return open_volume(answer.out.strip())


def _voxels(volume: Volume) -> NDArray[Any]:
    return volume.read(Box.whole(volume.shape))


# What comes out


def _assert_is_grey(volume: Volume) -> None:
    assert np.array_equal(_voxels(volume), GREY)
    assert (volume.dtype, volume.axes, volume.voxel_size_nm) == (np.uint8, ("z", "y", "x"), (50.0, 4.0, 4.0))
    assert (volume.chunk, volume.shard) == ((2, 16, 16), (4, 32, 32))
    told = {name: volume.attributes[name] for name in ("made_by", "kind", "complete", "invalid_sections")}
    assert told == {"made_by": "ingest", "kind": "image", "complete": True, "invalid_sections": []}
    assert open_ome_zarr(zarr.open_group(volume.url, mode="r")).ome_zarr_version == "0.5"


def test_a_tiff_and_its_slices_become_equal_volumes(capsys: Capsys, tmp_path: Path) -> None:
    for source in (_tiff(tmp_path / "a.tif", GREY), _pngs(tmp_path / "slices", GREY)):
        volume = _ingested(capsys, source, source.stem, *LAYOUT)
        _assert_is_grey(volume)
        assert volume.attributes["source"] == str(source)


def test_a_volume_made_on_ray_is_the_one_made_serially(capsys: Capsys, tmp_path: Path, ray_session: None) -> None:
    source = _tiff(tmp_path / "a.tif", GREY)
    serial = _ingested(capsys, source, "serial", *LAYOUT)
    on_ray = _ingested(capsys, source, "ray", *LAYOUT, "--engine", "ray", "--workers", "2")
    _assert_is_grey(on_ray)
    checksums = [sorted((row.block, row.status, row.checksum) for row in read_rows(v.url)) for v in (serial, on_ray)]
    assert checksums[0] == checksums[1] and len(checksums[0]) == SHARDS


def test_progress_goes_to_the_log_and_the_path_to_standard_output(
    capsys: Capsys, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tessera"):
        answer = tessera(capsys, *_words(_tiff(tmp_path / "a.tif", GREY), "em", *LAYOUT))
    assert answer.out == f"{home / 'volumes' / 'em.zarr'}\n"
    assert "em.zarr: 12/12 blocks" in caplog.text


def test_missing_and_black_sections_are_told_and_marked(
    capsys: Capsys, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack = GREY.copy()
    stack[6] = 0
    folder = _pngs(tmp_path / "slices", stack)
    (folder / "s5.png").unlink()
    with caplog.at_level(logging.WARNING, "tessera"):
        volume = _ingested(capsys, folder, "v", *LAYOUT)
    assert volume.invalid_sections == {3, 6} and volume.attributes["complete"]
    assert "section 3 is missing from the numbering: marked invalid" in caplog.text
    assert "section 6 (s8.png) is blank: marked invalid; it is not predicted and not scored" in caplog.text
    assert not _voxels(volume)[3].any() and np.array_equal(_voxels(volume)[4], GREY[4])


def test_a_section_that_is_constant_in_each_shard_but_not_over_all_is_valid(capsys: Capsys, tmp_path: Path) -> None:
    stack = GREY.copy()
    stack[5, :32, :32] = stack[6] = stack[7] = 0
    stack[6, 32:, 32:] = 9
    stack[7, :32, :32] = 9
    assert _ingested(capsys, _tiff(tmp_path / "a.tif", stack), "v", *LAYOUT).invalid_sections == frozenset()


def test_white_is_zero_files_are_turned_unless_told_not_to(capsys: Capsys, tmp_path: Path) -> None:
    path = _tiff(tmp_path / "a.tif", GREY, photometric="miniswhite")
    assert np.array_equal(_voxels(_ingested(capsys, path, "turned")), 255 - GREY)
    assert np.array_equal(_voxels(_ingested(capsys, path, "kept", "--invert", "false")), GREY)
    plain = _tiff(tmp_path / "b.tif", GREY)
    assert np.array_equal(_voxels(_ingested(capsys, plain, "forced", "--invert", "true")), 255 - GREY)


def test_coloured_labels_become_ids_and_all_blank_label_sections_stay_valid(capsys: Capsys, tmp_path: Path) -> None:
    ids = (GREY[:3, :8, :8] // 64).astype(np.uint8)
    ids[1] = 0
    palette = np.array([[0, 0, 0, 255], [255, 0, 0, 255], [0, 255, 0, 9], [0, 0, 255, 0]], np.uint8)
    volume = _ingested(capsys, _pngs(tmp_path / "colours", palette[ids]), "labels", "--kind", "labels")
    assert (volume.dtype, volume.attributes["kind"], volume.invalid_sections) == (np.uint32, "labels", frozenset())
    assert np.array_equal(_voxels(volume), np.array([0, 255 << 16, 255 << 8, 255], np.uint32)[ids])


def test_signed_values_stay_signed(capsys: Capsys, tmp_path: Path) -> None:
    stack = GREY.astype(np.int16) * 200 - 20000
    volume = _ingested(capsys, _tiff(tmp_path / "a.tif", stack))
    assert volume.dtype == np.int16 and np.array_equal(_voxels(volume), stack)


def _peak(capsys: Capsys, source: Path, output: str) -> int:
    tracemalloc.start()
    try:
        _ingested(capsys, source, output, "--chunk", "[4,128,256]", "--shard", "[4,256,512]")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_depends_on_the_shard_and_not_on_the_number_of_sections(capsys: Capsys, tmp_path: Path) -> None:
    section, shard_bytes = grey((1, 512, 512)), 4 * 256 * 512
    few = _tiff(tmp_path / "few.tif", np.repeat(section, 8, 0))
    many = _tiff(tmp_path / "many.tif", np.repeat(section, 96, 0))
    _peak(capsys, few, "warm")  # what is imported on the way stays
    small, large = _peak(capsys, few, "few"), _peak(capsys, many, "many")
    assert shard_bytes < small < 24 * 2**20 / 2, "a shard, its section and its compressed form"
    assert large - small < 2 * shard_bytes


# Half-written, resumed, overwritten


@pytest.fixture
def broken_shard(monkeypatch: pytest.MonkeyPatch) -> Box:
    """A shard that cannot be written until the test undoes the patch."""
    box, write = Box((4, 0, 32), (8, 32, 60)), Volume.write

    def failing(volume: Volume, where: Box, data: NDArray[Any]) -> None:
        if where == box:
            raise OSError("No space left on device")
        write(volume, where, data)

    monkeypatch.setattr(Volume, "write", failing)
    return box


def test_a_failed_shard_is_listed_and_a_rerun_does_only_that_one(
    capsys: Capsys, home: Path, tmp_path: Path, broken_shard: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = _words(_tiff(tmp_path / "a.tif", GREY), "em", *LAYOUT)
    answer = tessera(capsys, *words)
    path = home / "volumes" / "em.zarr"
    assert (answer.code, answer.out) == (1, "")
    assert f"1 of 12 blocks of {path} failed; the others are done and recorded:" in answer.err
    assert f"block 5 {broken_shard}: OSError: No space left on device" in answer.err
    assert "the same command with `--retry_failed true`: only these blocks will run" in answer.err
    assert open_volume(path).attributes["complete"] is False
    first = [(row.block, row.status) for row in read_rows(path)]
    assert sorted(first) == [(i, "failed" if i == 5 else "done") for i in range(SHARDS)]
    monkeypatch.undo()
    monkeypatch.setenv("TESSERA_HOME", str(home))
    assert tessera(capsys, *words).code == 1, "what was given up stays so until it is asked for"
    assert [(row.block, row.status) for row in read_rows(path)] == first
    answer = tessera(capsys, *words, "--retry_failed", "true")
    assert (answer.code, answer.out) == (0, f"{path}\n")
    assert [(row.block, row.status) for row in read_rows(path)] == [*first, (5, "done")]
    volume = open_volume(path)
    assert volume.attributes["complete"] is True and np.array_equal(_voxels(volume), GREY)


@pytest.mark.parametrize("command", ["predict", "train", "segment", "evaluate"])
def test_a_half_written_volume_is_refused_by_its_readers(
    capsys: Capsys, home: Path, tmp_path: Path, broken_shard: Box, command: str
) -> None:
    source = _tiff(tmp_path / "a.tif", GREY)
    assert tessera(capsys, *_words(source, "em", *LAYOUT)).code == 1
    part = '[{"volume": "em", "labels": "em", "sections": "%s"}]'
    bundle = tmp_path / "bundle"
    _dummy_bundle(bundle)
    words = {
        "predict": ["--volume", "em", "--model", str(bundle), "--output", "p"],
        "train": ["--data.train", part % "0-3", "--data.validation", part % "4-7"],
        "segment": ["--volume", "em", "--output", "cells"],
        "evaluate": ["--volume", "em", "--labels", "em"],
    }
    told = refusal(capsys, home, command, *words[command])
    assert "em.zarr is only half-written: blocks that are missing would read as zeros. Run the command that" in told


def _dummy_bundle(folder: Path) -> None:
    from tessera.images.normalise import Normalisation
    from tessera.model.bundle import Contract, save_contract
    from tessera.model.spec import UnetSpec

    folder.mkdir()
    (folder / "weights.keras").write_bytes(b"not read")
    save_contract(folder, Contract(UnetSpec(2, 1), Normalisation("global", 128.0, 60.0), "uint8", (50.0, 4.0, 4.0)))


def test_a_finished_volume_is_left_as_it_is_by_a_rerun(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    words = _words(_tiff(tmp_path / "a.tif", GREY), "em", *LAYOUT)
    assert tessera(capsys, *words).code == 0
    path = home / "volumes" / "em.zarr"
    dates = {file: file.stat().st_mtime_ns for file in (path / "0").rglob("*") if file.is_file()}
    assert tessera(capsys, *words).code == 0
    assert {file: file.stat().st_mtime_ns for file in (path / "0").rglob("*") if file.is_file()} == dates
    assert len(list(read_rows(path))) == SHARDS and open_volume(path).attributes["complete"] is True


def test_another_source_takes_an_earlier_volumes_name_only_with_overwrite(
    capsys: Capsys, home: Path, tmp_path: Path
) -> None:
    assert tessera(capsys, *_words(_tiff(tmp_path / "a.tif", GREY), "em", *LAYOUT)).code == 0
    other = _words(_tiff(tmp_path / "b.tif", 255 - GREY), "em", *LAYOUT)
    told = refusal(capsys, home, *other)
    assert "belongs to another job" in told and f"source.path was {tmp_path}/a.tif, now {tmp_path}/b.tif" in told
    assert "`--overwrite true`" in told
    assert tessera(capsys, *other, "--overwrite", "true").code == 0
    assert np.array_equal(_voxels(open_volume(home / "volumes" / "em.zarr")), 255 - GREY)


def test_an_earlier_volume_survives_a_command_that_cannot_work(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    source = _tiff(tmp_path / "a.tif", GREY)
    assert tessera(capsys, *_words(source, "em")).code == 0
    illegal = ("--overwrite", "true", "--chunk", "[5,16,16]", "--shard", "[6,16,16]")
    told = refusal(capsys, home, *_words(source, "em", *illegal))
    assert told.endswith("Try shard (10, 16, 16).")
    assert np.array_equal(_voxels(open_volume(home / "volumes" / "em.zarr")), GREY)


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_a_target_that_tessera_did_not_make_is_left_alone(
    capsys: Capsys, home: Path, tmp_path: Path, overwrite: str
) -> None:
    target = home / "volumes" / "thesis.zarr"
    target.mkdir(parents=True)
    (target / "chapter1.txt").write_text("years of work")
    source = _tiff(tmp_path / "a.tif", GREY)
    told = refusal(capsys, home, *_words(source, "thesis", "--overwrite", overwrite))
    assert "thesis.zarr is a folder that holds chapter1.txt that tessera did not make" in told
    assert told.endswith("Give another output, or remove it yourself.")


def test_a_slice_that_cannot_be_decoded_is_named(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    folder = _pngs(tmp_path / "slices", GREY)
    (folder / "s7.png").write_bytes((folder / "s7.png").read_bytes()[:900])
    answer = tessera(capsys, *_words(folder, "em", *LAYOUT))
    assert answer.code == 1 and "4 of 12 blocks" in answer.err
    assert "slices/s7.png: s7.png cannot be decoded" in answer.err and "Copy it again, or delete it" in answer.err
    assert open_volume(home / "volumes" / "em.zarr").attributes["complete"] is False


# What is refused


def _mixed_sizes(tmp_path: Path) -> Path:
    folder = _pngs(tmp_path / "slices", GREY)
    (folder / "s7.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(GREY[0, :, :50])))
    return folder


def _empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "slices").mkdir()
    return tmp_path / "slices"


def _no_tiff(tmp_path: Path) -> Path:
    (tmp_path / "a.tif").write_bytes(b"hello")
    return tmp_path / "a.tif"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            _mixed_sizes,
            "sections differ in size. 11 of 12 have 40x60 px, but 40x50 px: s7.png. One volume has one size",
        ),
        (_empty_folder, "slices is empty: no section to read. Give a folder of numbered .tif"),
        (_no_tiff, "a.tif: not a readable TIFF"),
        (lambda tmp_path: tmp_path / "gone.tif", "gone.tif does not exist: looked for "),
        (
            lambda tmp_path: _tiff(tmp_path / "a.tif", GREY.astype(np.float64)),
            "dtype float64 is not supported for image",
        ),
        (lambda _: "s3://bucket/a.tif", "slices are read from disks only. Copy them to a local folder first."),
    ],
)
def test_a_source_that_is_no_stack_is_refused_before_anything_is_made(
    capsys: Capsys, home: Path, tmp_path: Path, make: Any, told: str
) -> None:
    assert told in refusal(capsys, home, *_words(make(tmp_path)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--voxel_size_nm", "null"), "voxel_size_nm is not given"),
        (("--voxel_size_nm", "[50,4,-4]"), "voxel_size_nm [50.0, 4.0, -4.0] is not above 0"),
        (("--chunk", "[5,16,16]", "--shard", "[6,16,16]"), "chunks would straddle two shards. Try shard (10, 16, 16)."),
        (("--chunk", "[0,16,16]"), "chunk=[0, 16, 16]: every extent, z, y, x, must be at least 1 voxel. Try [16, 256"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_anything_is_made(
    capsys: Capsys, home: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    assert told in refusal(capsys, home, *_words(_tiff(tmp_path / "a.tif", GREY), "v", *words))


def test_a_stack_of_nothing_but_blank_sections_is_refused(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    blank = np.repeat(np.uint8([0, 7, 255])[:, None, None], 40, 1).repeat(60, 2)
    answer = tessera(capsys, *_words(_tiff(tmp_path / "a.tif", blank), "em"))
    assert answer.code == 2
    assert "every one of the 3 sections is blank (one constant value): there is nothing to segment." in answer.err
    assert "Check the export that made these files." in answer.err
    assert open_volume(home / "volumes" / "em.zarr").attributes["complete"] is False


def test_slices_added_since_are_another_source(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    folder = _pngs(tmp_path / "slices", GREY)
    (folder / "s13.png").rename(tmp_path / "later.png")
    assert tessera(capsys, *_words(folder, "em")).code == 0
    shutil.move(tmp_path / "later.png", folder / "s13.png")
    assert "`--overwrite true`" in refusal(capsys, home, *_words(folder, "em"))
