"""Promises about the ledger: what is recorded survives, and nothing is reused that should not be."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.storage.ledger import Ledger, LedgerRow, ledger_path, read_job, read_rows
from tessera.storage.removal import remove_output
from tessera.storage.volumes import create_volume

JOB = {"settings": {"tile": 64, "model": "a"}, "grid": {"shape": [4, 8, 8], "block": [4, 4, 4]}}


def begin(path: Path, **options: Any) -> Ledger:
    return Ledger.open(path, options.pop("key", "k1"), options.pop("description", JOB), **options)


def parts(path: Path, stage: str = ".") -> list[Path]:
    return sorted((ledger_path(path) / stage).glob("part-*.parquet"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    create_volume(tmp_path / "out.zarr", (4, 8, 8), np.uint8, voxel_size_nm=None)
    return tmp_path / "out.zarr"


def test_every_field_of_a_row_survives(output: Path) -> None:
    row = LedgerRow(
        block=2**40,
        status="failed",
        attempt=3,
        bytes=2**34,
        checksum="ab12",
        read_seconds=0.1,
        compute_seconds=2.5,
        write_seconds=0.25,
        error="ValueError: brain in vat",
        detail='{"origins": [[0, 2, 2]]}',
        finished_at=1.7e9,
    )
    with begin(output) as ledger:
        ledger.append(row)
    assert list(read_rows(output)) == [row]
    assert row.values == {"origins": [[0, 2, 2]]}


STATUS = st.sampled_from(["done", "failed", "missing"])
rows = st.lists(st.tuples(st.integers(0, 5), STATUS), max_size=30)


@settings(deadline=None, max_examples=30)
@given(rows, st.integers(1, 4), st.integers(0, 30))
def test_the_latest_row_wins_across_parts_and_reopenings(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, Any]], flush_rows: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "out.zarr"
    for session in (attempts[:cut], attempts[cut:]):
        with begin(path, flush_rows=flush_rows) as ledger:
            for block, status in session:
                ledger.append(LedgerRow(block, status, error=f"error {block}" if status == "failed" else ""))
            inside = ledger.done(), ledger.failed()
    latest = dict(attempts)
    expected = (
        {b for b, s in latest.items() if s == "done"},
        {b: f"error {b}" for b, s in latest.items() if s == "failed"},
    )
    assert inside == expected
    with begin(path) as ledger:
        assert (ledger.done(), ledger.failed()) == expected
        assert [(row.block, row.status) for row in ledger.rows()] == attempts


def test_blocks_to_do_are_those_that_are_neither_done_nor_given_up(output: Path) -> None:
    with begin(output) as ledger:
        for block, status in ((0, "done"), (1, "failed"), (3, "done"), (3, "missing"), (70_000, "done")):
            ledger.append(LedgerRow(block, status))  # type: ignore[arg-type]
        assert list(ledger.to_do(5)) == [2, 3, 4]
        assert list(ledger.to_do(5, failed_too=True)) == [1, 2, 3, 4]
        assert list(ledger.to_do(70_002))[-2:] == [69_999, 70_001]
        assert ledger.done() == {0, 70_000} and 3 not in ledger.done() and "0" not in ledger.done()


def test_the_checksum_of_a_block_is_that_of_its_latest_row(output: Path) -> None:
    with begin(output, flush_rows=2) as ledger:
        for block, status, checksum in ((2, "done", "a"), (1, "done", "b"), (2, "done", "c"), (0, "done", "")):
            ledger.append(LedgerRow(block, status, checksum=checksum))  # type: ignore[arg-type]
        ledger.append(LedgerRow(1, "missing", error="torn"))
        assert list(ledger.checksums()) == [(2, "c")]
        assert ledger.done() == {0, 2} and ledger.failed() == {}


def test_a_part_is_written_at_the_row_limit_and_never_changed(output: Path) -> None:
    with begin(output, flush_rows=3) as ledger:
        for block in range(7):
            ledger.append(LedgerRow(block, "done"))
        first = parts(output)
        before = [path.read_bytes() for path in first]
        assert len(first) == 2
        assert [row.block for row in ledger.rows()] == list(range(7))
        assert [row.block for row in read_rows(output)] == list(range(6))
    assert len(parts(output)) == 3 and [path.read_bytes() for path in first] == before


def test_a_row_waits_no_longer_than_the_time_limit_even_if_no_other_comes(output: Path) -> None:
    with begin(output, flush_seconds=0.05) as ledger:
        ledger.append(LedgerRow(0, "done"))
        assert not parts(output)
        deadline = time.monotonic() + 10
        while not parts(output) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [row.block for row in read_rows(output)] == [0]
    assert len(parts(output)) == 1


def test_a_killed_driver_loses_no_flushed_row(output: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from tessera.storage.ledger import Ledger, LedgerRow
ledger = Ledger.open(Path({str(output)!r}), "k1", {JOB!r}, flush_rows=2)
for block in range(5):
    ledger.append(LedgerRow(block, "done"))
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == b"ready\n"
        os.kill(driver.pid, signal.SIGKILL)
    with begin(output) as ledger:
        assert ledger.done() == {0, 1, 2, 3}


def test_an_error_in_the_job_still_records_its_rows(output: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), begin(output) as ledger:
        ledger.append(LedgerRow(1, "done"))
        raise RuntimeError("boom")
    assert [row.block for row in read_rows(output)] == [1]


def test_rows_of_a_part_that_could_not_be_written_are_kept(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.storage import ledger as module

    def full(*_: object) -> None:
        raise OSError("disk full")

    with begin(output, flush_rows=2) as ledger:
        ledger.append(LedgerRow(0, "done"))
        with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
            patch.setattr(module, "write_new", full)
            ledger.append(LedgerRow(1, "done"))
    assert [row.block for row in read_rows(output)] == [0, 1]


def test_files_of_a_killed_writer_are_not_parts(output: Path) -> None:
    with begin(output) as ledger:
        ledger.append(LedgerRow(0, "done"))
    (ledger_path(output) / ".part-00000001-00000000.parquet.1-00000000.tmp").write_bytes(b"half")
    with begin(output) as ledger:
        assert ledger.done() == {0}


def test_stages_are_independent(output: Path) -> None:
    with begin(output) as ledger:
        ledger.append(LedgerRow(0, "done"))
    with begin(output, key="k2", stage="faces") as faces:
        assert faces.done() == set()
        faces.append(LedgerRow(7, "done"))
    assert [row.block for row in read_rows(output)] == [0]
    assert [row.block for row in read_rows(output, stage="faces")] == [7]
    assert (len(parts(output)), len(parts(output, "faces"))) == (1, 1)


def test_the_job_is_described_beside_the_output(output: Path) -> None:
    begin(output).close()
    assert ledger_path(output) == output.with_name("out.zarr.ledger")
    job = read_job(output)
    assert (job["key"], job["description"]) == ("k1", JOB)


def test_a_ledger_without_a_volume_resumes_too(tmp_path: Path) -> None:
    with begin(tmp_path / "none.zarr") as ledger:
        ledger.append(LedgerRow(0, "done"))
    with begin(tmp_path / "none.zarr") as ledger:
        assert ledger.done() == {0}


def test_tuples_in_the_description_agree_with_the_lists_they_are_read_back_as(output: Path) -> None:
    begin(output, description={"grid": (4, 4, 4)}).close()
    with pytest.raises(ValueError, match="nothing described, such as the version"):
        begin(output, key="k2", description={"grid": (4, 4, 4)})


# What is refused


def test_another_job_is_refused_with_the_fields_that_differ(output: Path) -> None:
    begin(output).close()
    other = {"settings": {"tile": 128, "model": "a"}, "grid": {"shape": [4, 8, 8], "block": [4, 8, 8]}, "seed": 1}
    message = (
        r"another job: grid.block was \[4, 4, 4\], now \[4, 8, 8\]; seed was absent, now 1; "
        r"settings.tile was 64, now 128.*Give another output, or say `--overwrite true`"
    )
    with pytest.raises(ValueError, match=message):
        begin(output, key="k2", description=other)


def test_blocks_of_a_volume_that_was_made_anew_are_not_skipped(output: Path) -> None:
    begin(output).close()
    shutil.rmtree(output)
    with pytest.raises(ValueError, match="deleted or made anew since: they would be skipped and read as zeros"):
        begin(output)
    create_volume(output, (4, 8, 8), np.uint8, voxel_size_nm=None)
    with pytest.raises(ValueError, match="deleted or made anew"):
        begin(output)


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_corrupt_part_is_named(output: Path, damage: bytes | None) -> None:
    with begin(output) as ledger:
        ledger.append(LedgerRow(0, "done"))
    (part,) = parts(output)
    part.write_bytes(part.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(ValueError, match=rf"{part.name} is no readable ledger part.*its blocks will run again"):
        begin(output)


def test_a_part_with_other_columns_is_refused(output: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    begin(output).close()
    pq.write_table(pa.table({"block": [1]}), ledger_path(output) / "part-00000000-00000000.parquet")
    with pytest.raises(ValueError, match="no readable ledger part"):
        begin(output)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": "k1", "description": 3}'])
def test_a_corrupt_job_is_refused(output: Path, text: str) -> None:
    begin(output).close()
    (ledger_path(output) / "job.json").write_text(text)
    with pytest.raises(ValueError, match=r"job.json is corrupt.*say `--overwrite true`"):
        begin(output)


def test_parts_without_a_job_are_refused(output: Path) -> None:
    with begin(output) as ledger:
        ledger.append(LedgerRow(0, "done"))
    (ledger_path(output) / "job.json").unlink()
    with pytest.raises(ValueError, match=r"parts but no job.json: whose blocks they are is unknown"):
        begin(output)


def test_a_description_that_is_not_json_is_refused(output: Path) -> None:
    with pytest.raises(ValueError, match=r"description is not JSON.*Use plain numbers"):
        begin(output, description={"model": object()})


@pytest.mark.parametrize("stage", ["", "..", "a/b", "Faces"])
def test_a_stage_names_a_folder(output: Path, stage: str) -> None:
    with pytest.raises(ValueError, match="use lower-case letters, digits and _, for example 'faces'"):
        begin(output, stage=stage)


def test_a_closed_ledger_takes_no_rows(output: Path) -> None:
    ledger = begin(output)
    ledger.close()
    with pytest.raises(ValueError, match="is closed: block 4 would be lost"):
        ledger.append(LedgerRow(4, "done"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"status": "maybe"}, "a block is 'done', 'failed' or 'missing'"),
        ({"block": -1}, "blocks count from 0"),
        ({"attempt": 0}, "attempts from 1"),
        ({"detail": "labels: 12"}, "is no JSON object"),
        ({"detail": "[1]"}, "is no JSON object"),
    ],
)
def test_a_row_checks_itself(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LedgerRow(**{"block": 0, "status": "done"} | fields)


# Overwriting


def test_an_output_of_ours_is_removed_with_its_ledger(output: Path) -> None:
    begin(output).close()
    begin(output, stage="faces").close()
    remove_output(output)
    assert list(output.parent.iterdir()) == []
    remove_output(output)


def test_a_ledger_left_alone_is_removed(tmp_path: Path) -> None:
    begin(tmp_path / "out.zarr", stage="faces").close()
    remove_output(tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == []


def _foreign_zarr(path: Path) -> None:
    zarr.create_array(path, shape=(2, 2, 2), dtype="u1")


def _foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("x")


def _foreign_file(path: Path) -> None:
    path.write_text("x")


def _link(path: Path) -> None:
    create_volume(path.with_name("elsewhere.zarr"), (4, 8, 8), np.uint8, voxel_size_nm=None)
    path.symlink_to(path.with_name("elsewhere.zarr"))


def _foreign_ledger(path: Path) -> None:
    _foreign_folder(ledger_path(path))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_foreign_zarr, "is a Zarr array or group that tessera did not make: it is not deleted"),
        (_foreign_folder, "holds thesis.txt that tessera did not make"),
        (_foreign_file, "is a file that tessera did not make"),
        (_link, "is a link that tessera did not make"),
        (_foreign_ledger, "holds thesis.txt but no ledger: it is not deleted"),
    ],
)
def test_what_tessera_did_not_make_is_never_removed(tmp_path: Path, write: Any, message: str) -> None:
    write(tmp_path / "out.zarr")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=message):
        remove_output(tmp_path / "out.zarr")
    assert sorted(tmp_path.rglob("*")) == before
