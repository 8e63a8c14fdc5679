"""Promises about `--recheck true`: what is not as it was recorded is found, told and done again; nothing else is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from terminal import Answer, tessera
from tessera.settings.segment import SegmentSettings
from tessera.storage.ledger import ledger_path, read_rows
from tessera.storage.volumes import Volume, open_volume
from tessera.workflows import block_jobs
from tessera.workflows.predict import KIND
from tessera.workflows.segment import segment
from volumes import grey, put_volume

Capsys = pytest.CaptureFixture[str]
SHAPE, GREY = (12, 40, 60), grey((12, 40, 60))
LAYOUT = ("--chunk", "[2,16,16]", "--shard", "[4,32,32]")  # 3 x 2 x 2 shards
BLOCKS = 12


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "tessera"):
        yield


def ingest(capsys: Capsys, home: Path, *more: str) -> Answer:
    source = home / "em.tif"
    if not source.exists():
        tifffile.imwrite(source, GREY, photometric="minisblack")
    runner = () if "--engine" in more else ("--engine", "serial")
    words = ("--source", source, "--output", "em", "--voxel_size_nm", "[50,4,4]", "--attempts", "1", *LAYOUT)
    return tessera(capsys, "ingest", *words, *runner, *more)


def shards(volume: Path, level: str = "0") -> list[Path]:
    """Of each block, in their order."""
    return sorted(path for path in (volume / level / "c").rglob("*") if path.is_file())


def damage(volume: Path) -> None:
    """Block 1 torn, block 4 another block's, block 9 gone, and block 11 without its index's checksum."""
    files = shards(volume)
    files[1].write_bytes(files[1].read_bytes()[:-100])
    files[4].write_bytes(files[5].read_bytes())
    files[9].unlink()
    files[11].write_bytes(files[11].read_bytes()[:-4] + b"\0\1\2\3")


def rows(volume: Path, stage: str | None = None) -> list[tuple[int, str]]:
    return [(row.block, row.status) for row in read_rows(volume, stage=stage)]


@pytest.mark.parametrize("engine", ["serial", "ray"])
def test_what_differs_is_told_and_done_again_and_nothing_else(
    engine: str, home: Path, capsys: Capsys, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    if engine == "ray":
        request.getfixturevalue("ray_session")
    assert ingest(capsys, home).code == 0
    volume = home / "volumes" / "em.zarr"
    before = rows(volume)
    damage(volume)
    kept = {path: path.stat().st_mtime_ns for n, path in enumerate(shards(volume)) if n in (0, 2, 3, 7)}
    assert ingest(capsys, home).code == 0
    assert rows(volume) == before, "nobody looks unless asked to"
    assert ingest(capsys, home, "--recheck", "true", "--engine", engine).code == 0
    assert np.array_equal(open_volume(volume).array[:], GREY)
    new = rows(volume)[len(before) :]
    wrong = [1, 4, 9, 11]
    assert sorted(new) == sorted((block, status) for block in wrong for status in ("missing", "done"))
    assert all(new.index((block, "missing")) < new.index((block, "done")) for block in wrong)
    assert "em.zarr: 4 of 12 blocks are not what was recorded, and are done again:" in caplog.text
    assert "block 4 [4:8, 0:32, 0:32]: its checksum is " in caplog.text
    assert "block 1 [0:4, 0:32, 32:60]: it cannot be decoded" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert open_volume(volume).attributes["complete"] is True


def test_what_is_as_recorded_is_left_alone(home: Path, capsys: Capsys, caplog: pytest.LogCaptureFixture) -> None:
    assert ingest(capsys, home, "--ome_zarr", "0.4", *LAYOUT[:2], "--shard", "null").code == 0
    volume = home / "volumes" / "em.zarr"
    before = rows(volume)
    assert ingest(capsys, home, "--ome_zarr", "0.4", "--shard", "null", "--recheck", "true").code == 0
    assert rows(volume) == before and "blocks were read again, and are what was recorded" in caplog.text


def test_a_kill_between_finding_and_mending_loses_nothing(
    home: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ingest(capsys, home).code == 0
    volume = home / "volumes" / "em.zarr"
    damage(volume)
    real = block_jobs.recheck

    def killed(*arguments: Any) -> Any:
        real(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(block_jobs, "recheck", killed)
        assert ingest(capsys, home, "--recheck", "true").code == 130
    assert rows(volume)[BLOCKS:] == [(block, "missing") for block in (1, 4, 9, 11)]
    assert "8 of 12 blocks done, 0 failed, 4 left" in tessera(capsys, "status", "em").out
    assert ingest(capsys, home).code == 0
    assert np.array_equal(open_volume(volume).array[:], GREY)
    assert sorted(rows(volume)[BLOCKS + 4 :]) == [(block, "done") for block in (1, 4, 9, 11)]


def test_a_volume_whose_blocks_could_not_be_mended_is_not_whole(
    home: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ingest(capsys, home).code == 0
    volume = home / "volumes" / "em.zarr"
    damage(volume)

    def full(self: Volume, box: object, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Volume, "write", full)
    answer = ingest(capsys, home, "--recheck", "true")
    assert answer.code == 1 and "4 of 12 blocks of" in answer.err
    assert open_volume(volume).attributes["complete"] is False


def test_faces_seams_and_labels_of_a_segmentation_are_all_checked(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    voxels = np.kron(grey((2, 8, 8)), np.ones((2, 8, 8), np.uint8))
    probability = put_volume(home / "p.zarr", voxels, kind=KIND)
    cells = home / "cells.zarr"
    layout: dict[str, Any] = {"chunk": (2, 32, 32), "shard": (2, 32, 32), "engine": "serial"}
    settings = {"volume": str(probability), "output": str(cells), "threshold": 0.5, **layout}
    segment(SegmentSettings(**settings))
    whole = open_volume(cells).array[:]
    torn, gone = sorted((ledger_path(cells) / "faces").glob("faces-*"))[2:4]  # type: ignore[union-attr]
    torn.write_bytes(torn.read_bytes()[:-20])
    gone.unlink()
    (ledger_path(cells) / "seams" / "edges-000000001.parquet").write_bytes(b"no table")  # type: ignore[union-attr]
    shards(cells)[5].write_bytes(b"no shard")
    segment(SegmentSettings(**settings, recheck=True))
    assert np.array_equal(open_volume(cells).array[:], whole)
    again = [rows(cells, stage)[8:] for stage in ("faces", None, "seams")]
    assert sorted(again[0]) == [(2, "done"), (2, "missing"), (3, "done"), (3, "missing")]
    assert sorted(again[1]) == [(5, "done"), (5, "missing")]
    assert sorted(again[2]) == [(1, "done"), (1, "missing")]
    assert "block 3 [0:2, 32:64, 32:64]: it is not there" in caplog.text


def test_levels_of_a_pyramid_are_checked(home: Path, capsys: Capsys) -> None:
    volume = put_volume(home / "volumes" / "em.zarr", grey((2, 64, 64)), kind="image")
    words = ("pyramid", "--volume", "em", "--levels", "2", "--engine", "serial")
    assert tessera(capsys, *words).code == 0
    first = open_volume(volume, level=1).array[:]
    (shard,) = shards(volume, "1")
    shard.write_bytes(b"torn")
    assert tessera(capsys, *words, "--recheck", "true").code == 0
    assert np.array_equal(open_volume(volume, level=1).array[:], first)
    assert rows(volume, "level_1") == [(0, "done"), (0, "missing"), (0, "done")]
    assert rows(volume, "level_2") == [(0, "done")]
