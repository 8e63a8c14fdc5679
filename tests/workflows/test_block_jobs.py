"""A block job's failures: one is quarantined and listed, all of them stop the job, and what is done stays done."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tessera.engine.tasks import CircuitBrokenError, Process, RetryPolicy
from tessera.settings.common import OutputSettings
from tessera.storage.ledger import read_rows
from tessera.workflows.block_jobs import BlocksFailedError, run_block_job
from tessera.workflows.outputs import OutputPlan, claimed_output, plan_output

LAYOUT: dict[str, Any] = {"chunk": (1, 8, 8), "shard": (1, 8, 8)}


def _settings(engine: Literal["ray", "serial"]) -> OutputSettings:
    return OutputSettings(engine=engine, workers=2 if engine == "ray" else 0, attempts=2, **LAYOUT)


@pytest.fixture
def output(home: Path) -> OutputPlan:
    """A hundred blocks."""
    facts: dict[str, Any] = {"made_by": "test", "kind": "test", "voxel_size_nm": (50, 4, 4), "depends_on": {}}
    plan = plan_output(_settings("serial"), str(home / "out.zarr"), (1, 80, 80), np.uint8, **facts)
    with claimed_output(plan, _settings("serial")):
        pass
    return plan


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a block waits is promised elsewhere, and a hundred waits are a minute."""
    monkeypatch.setattr(RetryPolicy, "pause_s", lambda *given: 0.0)


def _make(what: Callable[[int], None]) -> Process:
    def process(item: tuple[int, Any]) -> dict[str, Any]:
        what(item[0])
        return {"bytes": 64}

    return process


def _kill_at_42(index: int) -> None:
    if index == 42:
        os.kill(os.getpid(), signal.SIGKILL)


def _full(index: int) -> None:
    raise OSError("No space left on device")


def test_of_a_hundred_blocks_the_one_that_kills_its_process_is_quarantined_with_its_place_and_error(
    ray_session: None, output: OutputPlan
) -> None:
    told = r"1 of 100 blocks of \S+out.zarr failed.*\n  block 42 \[0:1, 32:40, 16:24\]: its worker process died: The"
    with pytest.raises(BlocksFailedError, match=told):
        run_block_job(output, partial(_make, _kill_at_42), _settings("ray"))
    rows = list(read_rows(output.path))
    assert Counter(row.status for row in rows) == {"done": 99, "failed": 1}
    assert [(row.block, row.attempt) for row in rows if row.status == "failed"] == [(42, 2)]


@pytest.mark.usefixtures("no_pauses")
def test_a_job_in_which_everything_fails_stops_again_after_a_resume_and_ends_once_the_cause_is_mended(
    output: OutputPlan,
) -> None:
    good = iter(range(30))

    def until_full(index: int) -> None:
        if next(good, None) is None:
            _full(index)

    runs = ((until_full, "50 blocks in a row failed"), (_full, "the first 10 blocks all failed"))
    for what, told in (*runs, runs[1]):
        with pytest.raises(CircuitBrokenError, match=rf"{told}, the last with: OSError: No space left.*what is done"):
            run_block_job(output, partial(_make, what), _settings("serial"))
        assert sum(row.status == "done" for row in read_rows(output.path)) == 30
    again = replace(_settings("serial"), retry_failed=True)
    assert run_block_job(output, partial(_make, lambda index: None), again).computed == 70
    assert Counter(row.block for row in read_rows(output.path) if row.status == "done") == Counter(range(100))


@pytest.mark.usefixtures("no_pauses")
def test_tries_that_failed_are_counted_in_the_row_and_told_ever_more_rarely(
    output: OutputPlan, caplog: pytest.LogCaptureFixture
) -> None:
    seen: set[int] = set()

    def flaky(index: int) -> None:
        if index not in seen:
            seen.add(index)
            raise OSError("the network hiccuped")

    run_block_job(output, partial(_make, flaky), _settings("serial"))
    assert {row.attempt for row in read_rows(output.path)} == {2}
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 11, "the first 8 of a hundred, then the 16th, 32nd and 64th"
    assert told[-1] == "block 63 is tried again after: OSError: the network hiccuped (setback 64)"
