"""Promises about `--dry_run true`: what would be done is told, what cannot work is refused, and nothing is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from bundles import make_bundle
from objectstore import BUCKET, S3Server
from terminal import Answer, refusal, tessera
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.settings.common import OutputSettings
from tessera.storage.ledger import Ledger, read_job
from tessera.storage.locations import place_of
from tessera.storage.room import check_writable, free_bytes, stored_share
from tessera.workflows import preflight
from tessera.workflows.predict import KIND
from tessera.workflows.preflight import voxels_read
from volumes import grey, put_volume

Capsys = pytest.CaptureFixture[str]
LAYOUT = ("--chunk", "[2,16,16]", "--shard", "[2,32,32]", "--engine", "serial")


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def dry(capsys: Capsys, home: Path, *words: object) -> Answer:
    """A dry run that works, and leaves every file and folder as it was."""
    before = tree(home)
    answer = tessera(capsys, *words, "--dry_run", "true")
    assert answer.code == 0, answer.err
    assert tree(home) == before
    return answer


@pytest.fixture
def segment(home: Path) -> tuple[object, ...]:
    """A segmentation of 2 x 2 x 2 blocks."""
    put_volume(home / "volumes" / "p.zarr", np.kron(grey((4, 8, 8)), np.ones((1, 8, 8), np.uint8)), kind=KIND)
    return ("segment", "--volume", "p", "--output", "cells", "--threshold", "0.5", *LAYOUT)


def test_a_prediction_is_foretold_from_a_tile_of_its_own(home: Path, tmp_path: Path, capsys: Capsys) -> None:
    put_volume(home / "volumes" / "raw.zarr", grey((4, 64, 64)))
    bundle = make_bundle(tmp_path / "bundle")
    words = ("predict", "--volume", "raw", "--model", bundle, "--output", "out", "--tile", "[1,32,32]", *LAYOUT)
    text = dry(capsys, home, *words, "--price_per_hour", "2.5").out.splitlines()
    assert text[:2] == [
        f"{home}/volumes/out.zarr: nothing was done",
        "  blocks      8: 8 to do, 0 done, 0 failed",
    ]
    assert "  to write    16.00 KiB of voxels" in text
    assert [line.split()[0] for line in text[2:]] == ["to", "to", "on", "free", *text_after(text)]
    told = json.loads(dry(capsys, home, *words, "--json", "true").out)
    assert told["seconds"] > 0 and told["cost"] is None and 0 < told["stored_bytes"] < 2 * told["write_bytes"]
    assert told["read_bytes"] > told["write_bytes"] == 4 * 64 * 64, "blocks overlap in what they read"
    assert tessera(capsys, *words).code == 0
    told = json.loads(dry(capsys, home, *words, "--json", "true").out)
    assert (told["left"], told["done"], told["read_bytes"], told["seconds"]) == (0, 8, 0, None)


def text_after(text: list[str]) -> list[str]:
    """The last lines' first words: memory is told where it is known."""
    return [*(["memory"] if any("memory" in line for line in text) else []), "time", "cost"]


def test_a_segmentation_and_an_ingest_are_foretold(home: Path, capsys: Capsys, segment: tuple[object, ...]) -> None:
    told = json.loads(dry(capsys, home, *segment, "--json", "true", "--price_per_hour", "3").out)
    assert (told["blocks"], told["left"], told["write_bytes"]) == (8, 8, 8 * 4 * 64 * 64)
    assert told["cost"] == pytest.approx(told["seconds"] / 1200)
    tifffile.imwrite(home / "em.tif", grey((4, 64, 64)), photometric="minisblack")
    ingest = ("ingest", "--source", home / "em.tif", "--output", "em", "--voxel_size_nm", "[50,4,4]", *LAYOUT)
    assert "  to read     16.00 KiB of voxels, halos included" in dry(capsys, home, *ingest).out


def test_what_is_done_already_is_counted_and_another_job_is_refused(
    home: Path, capsys: Capsys, segment: tuple[object, ...]
) -> None:
    assert tessera(capsys, *segment).code == 0
    cells = home / "volumes" / "cells.zarr"
    job = read_job(cells)
    from tessera.storage.ledger import LedgerRow

    with Ledger.open(cells, job["key"], job["description"]) as ledger:
        ledger.append(LedgerRow(3, "failed", error="x"))
        ledger.append(LedgerRow(4, "missing"))
        told = refusal(capsys, home, *segment, "--dry_run", "true")
        assert "another driver works on it (process" in told
    assert "8: 1 to do, 6 done, 1 failed" in dry(capsys, home, *segment).out
    assert "8: 2 to do, 6 done, 0 failed" in dry(capsys, home, *segment, "--retry_failed", "true").out
    assert "8: 8 to do, 0 done, 0 failed" in dry(capsys, home, *segment, "--overwrite", "true").out
    assert "threshold was 0.5, now 0.3" in refusal(capsys, home, *segment, "--threshold", "0.3", "--dry_run", "true")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--block", "[2,48,32]"), r"block=(2, 48, 32) is not a multiple of the output shard"),
        (("--output", "foreign"), "holds thesis.txt that tessera did not make"),
        (("--output", "file/below/it.zarr"), "file is a file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    home: Path, capsys: Capsys, segment: tuple[object, ...], more: tuple[str, ...], message: str
) -> None:
    (home / "volumes" / "foreign.zarr").mkdir()
    (home / "volumes" / "foreign.zarr" / "thesis.txt").write_text("x")
    (home / "file").write_text("x")
    more = tuple(word.replace("file/below", f"{home}/file/below") for word in more)
    assert message in refusal(capsys, home, *segment, *more, "--dry_run", "true")


def test_a_disk_that_is_too_small_is_refused(
    home: Path, capsys: Capsys, segment: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda place: 10)
    told = refusal(capsys, home, *segment, "--dry_run", "true")
    assert "compressed as the sample was, and 10 bytes are free: the job would stop with a full disk" in told


def test_a_folder_that_one_may_not_write_to_is_refused(tmp_path: Path) -> None:
    """Root may write anywhere, so that somebody else asks."""
    (tmp_path / "theirs").mkdir(mode=0o755)
    asks = f"""
import os
from pathlib import Path
from tessera.storage.room import check_writable
os.geteuid() or os.setuid(65534)
check_writable(Path({str(tmp_path / "theirs" / "a" / "out.zarr")!r}))
"""
    (tmp_path / "theirs").chmod(0o555)
    for folder in [tmp_path, *tmp_path.parents][:4]:
        if os.geteuid() == 0:
            folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=False)
    assert f"cannot be written: this user may not write in {tmp_path / 'theirs'}" in done.stderr


def test_an_object_store_is_asked_without_a_trace(s3: S3Server) -> None:
    check_writable(place_of(f"s3://{BUCKET}/em/out.zarr"))
    assert s3.listing() == [] and free_bytes(place_of(f"s3://{BUCKET}/em/out.zarr")) is None
    with pytest.raises(OSError, match=r"no-such-bucket"):
        check_writable(place_of("s3://no-such-bucket/em/out.zarr"))


def test_settings_of_a_dry_run_alone_are_refused_elsewhere() -> None:
    with pytest.raises(ValueError, match=r"are for a dry run.*Say `--dry_run true`"):
        OutputSettings(json=True)
    with pytest.raises(ValueError, match=r"price_per_hour=-1 is no price"):
        OutputSettings(dry_run=True, price_per_hour=-1)


extents = st.tuples(*[st.integers(1, 12)] * 3)


@given(extents, extents, st.tuples(*[st.integers(0, 5)] * 3))
def test_what_is_read_is_the_sum_over_blocks(
    shape: tuple[int, ...], block: tuple[int, ...], halo: tuple[int, ...]
) -> None:
    grid = BlockGrid(shape, block)
    read = (box.grown(halo).clipped(Box.whole(shape)).size for _, box in grid.boxes())
    assert voxels_read(grid, halo) == sum(read)


def test_constants_take_less_room_than_noise() -> None:
    assert stored_share(np.zeros((4, 64, 64), np.uint8)) < 0.1 < 0.9 < stored_share(grey((4, 64, 64)))
