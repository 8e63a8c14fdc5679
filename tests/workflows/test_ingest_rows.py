"""Ingest row by row of shards: what is decoded how often, what a kill, a bad strip and a full disk leave to be done."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from objectstore import BUCKET, S3Server
from sparse_tiff import DEFLATE, write_sparse
from terminal import refusal, tessera
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.storage.ledger import LedgerRow, read_rows
from tessera.storage.page_windows import opened
from tessera.storage.stacks import open_stack
from tessera.storage.volumes import create_volume, open_volume
from tessera.workflows import ingest as workflow
from tessera.workflows.row_reader import RowReader
from tessera.workflows.shard_rows import RowPlan
from volumes import grey

Capsys = pytest.CaptureFixture[str]
SHAPE, SHARD = (8, 64, 96), (4, 16, 32)  # 2 x 4 x 3 shards
LAYOUT = ("--chunk", "[2,16,16]", "--shard", "[4,16,32]")
GREY = grey(SHAPE)
GRID = BlockGrid(SHAPE, SHARD)
RETRY = ("--retry_failed", "true")
# Sections are cut into 8 strips of 8 rows; section 5 and one strip of section 1 hold something.
STORED = {(1, 3), *((5, index) for index in range(8))}


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process, with the reader that workers on Ray use in place of dask's."""
    monkeypatch.setattr(workflow, "opened_with_dask", opened)


def _tiff(path: Path, **options: Any) -> Path:
    tifffile.imwrite(path, GREY, photometric="minisblack", **options)
    return path


def _sparse(path: Path) -> Path:
    def content(z: int, index: int) -> NDArray[np.uint8] | None:
        return GREY[z, index * 8 : index * 8 + 8] if (z, index) in STORED else None

    assert write_sparse(path, SHAPE, (8, 96), content, compression=DEFLATE) == len(STORED)
    return path


def _sparse_voxels() -> NDArray[np.uint8]:
    voxels = np.zeros(SHAPE, np.uint8)
    for z, index in STORED:
        voxels[z, index * 8 : index * 8 + 8] = GREY[z, index * 8 : index * 8 + 8]
    return voxels


def _words(source: Path, output: str, *more: str) -> list[str]:
    size = ["--voxel_size_nm", "[50,4,4]"]
    return [
        "ingest",
        "--source",
        str(source),
        "--output",
        output,
        *size,
        "--engine",
        "serial",
        "--attempts",
        "1",
        *more,
    ]


def _done(output: Path | str) -> list[LedgerRow]:
    return [row for row in read_rows(output) if row.status == "done"]


def _decoded(output: Path | str) -> int:
    return sum(row.values["decoded"] for row in _done(output))


def _voxels(output: Path | str) -> NDArray[Any]:
    volume = open_volume(output)
    return volume.read(Box.whole(volume.shape))


# What is decoded


def _touching(segment: tuple[int, int]) -> int:
    """Segments of all sections, once for each row of shards that they touch."""
    across = -(-SHAPE[2] // segment[1])
    rows = [range(top // segment[0], -(-(top + SHARD[1]) // segment[0])) for top in range(0, SHAPE[1], SHARD[1])]
    return SHAPE[0] * across * sum(map(len, rows))


@pytest.mark.usefixtures("direct")
@pytest.mark.parametrize(
    ("options", "segment"),
    [
        ({"rowsperstrip": 8}, (8, 96)),
        ({"rowsperstrip": 7}, (7, 96)),
        ({"rowsperstrip": 64}, (64, 96)),
        ({"tile": (16, 16)}, (16, 16)),
        ({"tile": (32, 48)}, (32, 48)),
        ({"tile": (16, 64)}, (16, 64)),
    ],
    ids=str,
)
def test_each_strip_and_tile_is_decoded_once_for_a_row_of_shards(
    capsys: Capsys, home: Path, tmp_path: Path, options: dict[str, Any], segment: tuple[int, int]
) -> None:
    answer = tessera(capsys, *_words(_tiff(tmp_path / "a.tif", compression="zlib", **options), "v", *LAYOUT))
    assert answer.code == 0, answer.err
    path = home / "volumes" / "v.zarr"
    assert np.array_equal(_voxels(path), GREY)
    assert _decoded(path) == _touching(segment)


@pytest.mark.usefixtures("ray_session")
def test_two_workers_do_not_decode_each_others_rows(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    source = _tiff(tmp_path / "a.tif", compression="zlib", rowsperstrip=8)
    answer = tessera(capsys, *_words(source, "v", *LAYOUT, "--engine", "ray", "--workers", "2"))
    assert answer.code == 0, answer.err
    path = home / "volumes" / "v.zarr"
    assert np.array_equal(_voxels(path), GREY)
    assert _decoded(path) == _touching((8, 96))


@pytest.mark.parametrize("group", [1, 2, 3])
def test_a_row_that_does_not_fit_is_decoded_once_for_each_group(tmp_path: Path, group: int) -> None:
    stack = open_stack(_tiff(tmp_path / "a.tif", compression="zlib", rowsperstrip=8), kind="image")
    plan = RowPlan(group, decoders=2, decodings=-(-3 // group), memory_bytes=0)
    reader, decoded = RowReader(stack, GRID, plan), 0
    for index in range(len(GRID)):
        lane = plan.lane(GRID, index)
        voxels, count = reader.take(index, [i for i in range(len(GRID)) if plan.lane(GRID, i) == lane])
        assert voxels is not None and np.array_equal(voxels, GREY[GRID.box(index).slices])
        decoded += count
    assert decoded == plan.decodings * _touching((8, 96))


def test_a_shard_that_is_asked_for_again_is_decoded_by_itself(tmp_path: Path) -> None:
    stack = open_stack(_tiff(tmp_path / "a.tif", compression="zlib", tile=(16, 32)), kind="image")
    reader = RowReader(stack, GRID, RowPlan(3, decoders=1, decodings=1, memory_bytes=0))
    counts = [reader.take(index, (0, 1, 2))[1] for index in (0, 1, 1, 2)]
    assert counts == [12, 0, 4, 0]


def test_the_last_shard_of_a_group_may_come_after_the_first_of_the_next(tmp_path: Path) -> None:
    stack = open_stack(_tiff(tmp_path / "a.tif", compression="zlib", rowsperstrip=8), kind="image")
    reader = RowReader(stack, GRID, RowPlan(3, decoders=2, decodings=1, memory_bytes=0))
    order = [0, 1, 3, 2, 4, 6, 5, 7, 8]
    taken = {index: reader.take(index, range(index // 3 * 3, index // 3 * 3 + 3)) for index in order}
    assert sum(count for _, count in taken.values()) == 3 * 4 * 2, "three rows of shards: 4 sections, 2 strips each"
    for index, (voxels, _) in taken.items():
        assert voxels is not None and np.array_equal(voxels, GREY[GRID.box(index).slices])


@pytest.mark.usefixtures("direct")
def test_holes_are_neither_decoded_nor_written(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    assert tessera(capsys, *_words(_sparse(tmp_path / "a.tif"), "v", *LAYOUT)).code == 0
    path = home / "volumes" / "v.zarr"
    assert np.array_equal(_voxels(path), _sparse_voxels())
    assert _decoded(path) == len(STORED)
    stored = {GRID.box(i) for i in range(len(GRID)) if _sparse_voxels()[GRID.box(i).slices].any()}
    assert sum(file.is_file() for file in (path / "0" / "c").rglob("*")) == len(stored) == 15
    assert open_volume(path).invalid_sections == {0, 2, 3, 4, 6, 7}, "sections without a byte are blank"


@pytest.mark.usefixtures("direct")
def test_a_sparse_source_is_written_to_a_store_shard_by_shard(capsys: Capsys, s3: S3Server, tmp_path: Path) -> None:
    url = f"s3://{BUCKET}/v.zarr"
    assert tessera(capsys, *_words(_sparse(tmp_path / "a.tif"), url, *LAYOUT)).code == 0
    assert np.array_equal(_voxels(url), _sparse_voxels())
    assert len(s3.listing("v.zarr/0/c/")) == 15


def test_erased_shards_read_as_zeros_and_others_stay(tmp_path: Path) -> None:
    for version in ("0.5", "0.4"):
        layout = {"chunk": (2, 16, 16), "shard": SHARD if version == "0.5" else None}
        volume = create_volume(tmp_path / version, SHAPE, "uint8", voxel_size_nm=(50, 4, 4), ome_zarr=version, **layout)
        volume.write(Box.whole(SHAPE), GREY)
        doomed = Box((4, 16, 32), (8, 32, 64))
        for _ in range(2):  # what is not there can be erased too
            volume.erase(doomed)
        expected = GREY.copy()
        expected[doomed.slices] = 0
        assert np.array_equal(_voxels(tmp_path / version), expected)
        with pytest.raises(ValueError, match=r"is not whole shards.*loses another task's data"):
            volume.erase(Box((4, 16, 32), (8, 32, 60)))


def test_no_shards_in_the_output_are_rows_of_blocks_all_the_same(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    words = _words(_sparse(tmp_path / "a.tif"), "v", "--ome_zarr", "0.4", "--chunk", "[2,16,16]")
    assert tessera(capsys, *words).code == 0
    assert np.array_equal(_voxels(home / "volumes" / "v.zarr"), _sparse_voxels())


# A kill

SLOWLY = """
import sys, time
from tessera.cli.main import main
from tessera.storage.ledger import Ledger
from tessera.storage.page_windows import opened
from tessera.storage.volumes import Volume
from tessera.workflows import ingest

append, write = Ledger.append, Volume.write
Ledger.append = lambda self, row: (append(self, row), self.flush())
Volume.write = lambda self, box, data: (write(self, box, data), time.sleep(0.1))
ingest.opened_with_dask = opened
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.usefixtures("direct")
def test_a_killed_ingest_goes_on_with_the_shards_that_are_not_recorded(
    capsys: Capsys, home: Path, tmp_path: Path
) -> None:
    words = _words(_tiff(tmp_path / "a.tif", compression="zlib", rowsperstrip=8), "v", *LAYOUT)
    path = home / "volumes" / "v.zarr"
    with subprocess.Popen([sys.executable, "-c", SLOWLY, *words], stderr=subprocess.DEVNULL) as process:
        _until(lambda: len(_done(path)) >= 7, process)
        process.send_signal(signal.SIGKILL)
    before = {row.block for row in _done(path)}
    assert 7 <= len(before) < len(GRID), "killed midway, within a row of shards or between two"
    assert tessera(capsys, *words).code == 0
    after = [row.block for row in _done(path)]
    assert sorted(after) == list(range(len(GRID))), "every shard is recorded once: none that was is made again"
    assert np.array_equal(_voxels(path), GREY)
    again = _decoded(path) - _touching((8, 96))
    assert 0 <= again <= 4 * 2, "the strips of the row that the kill cut, once more"


def _until(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)


# What goes wrong


@pytest.mark.usefixtures("direct")
def test_a_strip_that_cannot_be_decoded_fails_the_shards_that_need_it_and_no_others(
    capsys: Capsys, home: Path, tmp_path: Path
) -> None:
    source = _tiff(tmp_path / "a.tif", compression="zlib", rowsperstrip=8)
    good = source.read_bytes()
    with tifffile.TiffFile(source) as tif:
        page = tif.pages[5]
        begin = page.dataoffsets[3]
    source.write_bytes(good[:begin] + b"\xff" * 20 + good[begin + 20 :])
    status = source.stat()
    answer = tessera(capsys, *_words(source, "v", *LAYOUT))
    assert answer.code == 1
    assert "3 of 24 blocks of" in answer.err
    assert answer.err.count("a.tif: page 5 cannot be decoded") == 3
    path = home / "volumes" / "v.zarr"
    assert {GRID.position(row.block)[:2] for row in read_rows(path) if row.status == "failed"} == {(1, 1)}
    source.write_bytes(good)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # mended in place: still the job's source
    assert tessera(capsys, *_words(source, "v", *LAYOUT, *RETRY)).code == 0
    assert np.array_equal(_voxels(path), GREY)
    assert len(_done(path)) == len(GRID)


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("direct")
def test_a_disk_that_fills_up_loses_nothing_that_was_written(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    voxels = np.repeat(np.arange(1, 9, dtype=np.uint8)[:, None, None], 128, 1).repeat(1024, 2)
    voxels[:, :, 512:] = grey((8, 128, 512))  # what compresses well fits, what does not is too much
    voxels[:, 0, 0] = 99
    tifffile.imwrite(tmp_path / "a.tif", voxels, photometric="minisblack", compression="zlib", rowsperstrip=8)
    words = _words(tmp_path / "a.tif", "v", "--chunk", "[4,64,256]", "--shard", "[4,128,512]")
    path = home / "volumes" / "v.zarr"
    with _largest_file(60_000):
        answer = tessera(capsys, *words)
    assert answer.code == 1
    assert f"2 of 4 blocks of {path} failed; the others are done and recorded:" in answer.err
    assert answer.err.count("OSError: [Errno 27] File too large") == 2
    assert tessera(capsys, *words, *RETRY).code == 0
    assert np.array_equal(_voxels(path), voxels)
    assert sorted(row.block for row in _done(path)) == [0, 1, 2, 3], "what was written before stayed"


def test_too_little_memory_is_refused_before_anything_is_made(capsys: Capsys, home: Path, tmp_path: Path) -> None:
    source = _tiff(tmp_path / "a.tif", compression="zlib")
    assert "Try --memory_gib 0.25" in refusal(capsys, home, *_words(source, "v", "--memory_gib", "0.1"))
    assert "memory_gib=0: a worker needs some memory." in refusal(
        capsys, home, *_words(source, "v", "--memory_gib", "0")
    )


def test_a_strip_beyond_the_end_of_the_file_is_found_before_anything_is_made(
    capsys: Capsys, home: Path, tmp_path: Path
) -> None:
    source = _tiff(tmp_path / "a.tif", compression="zlib", rowsperstrip=8)
    with tifffile.TiffFile(source, mode="r+") as tif:
        tag = tif.pages[4].tags["StripOffsets"]
        tag.overwrite((*tag.value[:-1], 10**6))
    told = refusal(capsys, home, *_words(source, "v"))
    assert "a.tif: page 4 needs 100" in told and "it is truncated" in told


def test_a_source_that_a_node_does_not_see_is_told_with_the_node(tmp_path: Path) -> None:
    stack = open_stack(_tiff(tmp_path / "a.tif"), kind="image")
    elsewhere = replace(stack, path=tmp_path / "other" / "a.tif")
    with pytest.raises(FileNotFoundError, match=r"is not there on node \S+: .*file system that all nodes see"):
        workflow._make_worker(elsewhere, None, None, serial=True)  # type: ignore[arg-type]
