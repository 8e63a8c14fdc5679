"""Promises about `tessera status`: counts, rate and time left are the ledger's, for a person and for a program."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from socket import gethostname

import numpy as np
import pytest

from terminal import refusal, tessera
from tessera.settings.segment import SegmentSettings
from tessera.settings.status import StatusSettings
from tessera.storage.ledger import Ledger, LedgerRow, ledger_path
from tessera.storage.ledger_states import read_states
from tessera.storage.volumes import create_volume
from tessera.workflows.predict import KIND
from tessera.workflows.segment import segment
from tessera.workflows.status import as_text, pass_status, status
from volumes import put_volume

FACTS = {"workflow": "predict", "shape": [4, 1000, 40_000], "block": [4, 1000, 1000]}
Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """40 blocks of 4 Mvox: an hour's rest after block 4, then one block every 2 s; block 7 given up."""
    create_volume(tmp_path / "out.zarr", (4, 8, 8), np.uint8, voxel_size_nm=None)
    finished = [10.0, 12.0, 14.0, 16.0, *(3600.0 + 2.0 * n for n in range(12))]
    with Ledger.open(tmp_path / "out.zarr", "key", FACTS) as ledger:
        for block, moment in enumerate(finished):
            ledger.append(LedgerRow(block, "done", finished_at=moment))
        ledger.append(LedgerRow(7, "failed", attempt=3, error="ValueError: NaN", finished_at=3640.0))
    return tmp_path / "out.zarr"


def test_a_rest_between_two_drivers_is_no_part_of_the_rate(output: Path) -> None:
    one = pass_status(None, read_states(output))
    assert (one.blocks, one.done, len(one.failed), one.left) == (40, 15, 1, 24)
    assert one.blocks_per_second == pytest.approx(10 / 22)  # eleven blocks done within 22 s; the seventh was given up
    assert one.megavoxels_per_second == pytest.approx(4 * 10 / 22)
    assert one.seconds_left == pytest.approx(24 * 22 / 10)
    assert one.last_finished_at == 3640.0


def test_what_was_given_up_is_told_with_its_place_and_error(output: Path) -> None:
    (failed,) = pass_status(None, read_states(output)).failed
    assert failed.box == ((0, 4), (0, 1000), (7000, 8000)) and failed.attempts == 3
    text = as_text(status(StatusSettings(str(output))), now=3700.0)
    assert text.splitlines() == [
        f"{output}: not finished, and nobody works on it: the same command goes on",
        "predict: 15 of 40 blocks done, 1 failed, 24 left",
        "  rate        0.455 blocks/s, 1.82 Mvox/s",
        "  time left   53 s at that rate",
        "  last block  1 min 0 s ago",
        "  failed      block 7 [0:4, 0:1000, 7000:8000] after 3 tries: ValueError: NaN",
        "  to retry    the same command with --retry_failed true",
    ]


def test_a_long_list_of_failures_is_cut_for_a_person_and_whole_for_a_program(
    output: Path, capsys: Capsys, home: Path
) -> None:
    with Ledger.open(output, "key", FACTS) as ledger:
        for block in range(30):
            ledger.append(LedgerRow(block, "failed", error="disk full", finished_at=4000.0 + block))
    assert "and 10 more: --json true lists all of them" in as_text(status(StatusSettings(str(output))))
    answer = tessera(capsys, "status", output, "--json", "true")
    (one,) = json.loads(answer.out)["passes"]
    assert len(one["failed"]) == 30 and one["left"] == 10 and one["seconds_left"] is None


def test_before_the_second_block_no_rate_is_claimed(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "new.zarr", "key", FACTS) as ledger:
        ledger.append(LedgerRow(0, "done", finished_at=10.0))
    one = pass_status(None, read_states(tmp_path / "new.zarr"))
    assert one.blocks_per_second is None and one.seconds_left is None and one.left == 39
    assert one.last_finished_at == 10.0


def test_every_pass_of_a_workflow_is_told(tmp_path: Path, home: Path, capsys: Capsys) -> None:
    membrane = put_volume(tmp_path / "membrane.zarr", np.zeros((4, 32, 32), np.uint8), kind=KIND, levels=255)
    cells = tmp_path / "cells.zarr"
    segment(SegmentSettings(volume=str(membrane), output=str(cells), threshold=0.5, engine="serial"))
    lines = tessera(capsys, "status", cells).out.splitlines()
    assert lines[0] == f"{cells}: finished"
    told = [line for line in lines if "blocks done" in line]
    assert [line.partition(":")[0] for line in told] == ["segment, faces", "segment, seams", "segment"]
    assert all(line.endswith("1 of 1 blocks done, 0 failed, 0 left") for line in told)


def test_who_drives_an_output_is_told_while_it_lives_and_once_it_is_dead(
    output: Path, capsys: Capsys, home: Path
) -> None:
    with Ledger.open(output, "key", FACTS):
        told = tessera(capsys, "status", output).out.splitlines()[0]
        who = f"process {os.getpid()} on {gethostname()}"
        assert told.startswith(f"{output}: not finished, {who} works on it (last sign of life ")
        driver = json.loads(tessera(capsys, "status", output, "--json", "true").out)["driver"]
        assert driver["pid"] == os.getpid() and driver["alive"] is True
    assert json.loads(tessera(capsys, "status", output, "--json", "true").out)["driver"] is None
    gone = {"host": "node7", "world": "", "pid": 12, "started_at": 1.0, "token": "a", "expiry_s": 2.0}
    lease = ledger_path(output) / "lease-00000004.json"
    lease.write_text(json.dumps(gone))  # type: ignore[union-attr]
    os.utime(lease, (time.time() - 150,) * 2)  # type: ignore[arg-type]
    told = tessera(capsys, "status", output).out.splitlines()[0]
    dead = r"process 12 on node7 is dead \(last sign of life 2 min 3\d s ago\): the same command goes on"
    assert re.search(dead, told), told


def test_an_output_that_is_not_there_is_refused(tmp_path: Path, home: Path, capsys: Capsys) -> None:
    assert "no-such.zarr" in refusal(capsys, home, "status", tmp_path / "no-such.zarr")


def test_settings_want_an_output() -> None:
    with pytest.raises(ValueError, match=r"output is not given. Try --output"):
        replace(StatusSettings("a"), output="")
