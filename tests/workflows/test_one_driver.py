"""Promises about two drivers: the one that was replaced stops computing, and never both record."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.engine.tasks import Process
from tessera.settings.common import OutputSettings
from tessera.storage.lease import LeaseLostError, OutputInUseError
from tessera.storage.ledger import ledger_path, read_rows
from tessera.workflows.block_jobs import run_block_job
from tessera.workflows.outputs import OutputPlan, claimed_output, plan_output

SETTINGS = {"engine": "serial", "chunk": (4, 8, 8), "shard": (4, 8, 8), "lease_expiry_s": 1.0}


def plan(path: Path, settings: OutputSettings, **depends_on: Any) -> OutputPlan:
    facts = {"made_by": "predict", "kind": "image", "voxel_size_nm": None, "depends_on": depends_on}
    return plan_output(settings, str(path), (4, 8, 160), np.uint8, **facts)


def test_a_driver_that_was_replaced_stops_at_its_next_block(tmp_path: Path) -> None:
    settings, done = OutputSettings(**SETTINGS), list[int]()  # type: ignore[arg-type]
    output = plan(tmp_path / "out.zarr", settings)
    successor = {"host": "node7", "world": "", "pid": 12, "started_at": 1.0, "token": "a", "expiry_s": 60.0}

    def make_worker() -> Process:
        def process(item: tuple[int, object]) -> dict[str, Any]:
            if item[0] == 2:
                (ledger_path(output.path) / "lease-00000002.json").write_text(json.dumps(successor))  # type: ignore[union-attr]
                time.sleep(1.0)  # four signs of life: one of them finds it
            done.append(item[0])
            return {}

        return process

    with (
        pytest.raises(LeaseLostError, match=r"process 12 on node7, .* took it over.*This job stops"),
        claimed_output(output, settings) as lease,
    ):
        run_block_job(output, make_worker, settings, lease=lease)
    assert done == [0, 1, 2] and list(read_rows(output.path)) == []


def test_a_driver_that_was_replaced_does_not_wait_for_a_long_block(tmp_path: Path, ray_session: None) -> None:
    settings = OutputSettings(**{**SETTINGS, "engine": "ray", "workers": 1})  # type: ignore[arg-type]
    output, begun = plan(tmp_path / "out.zarr", settings), tmp_path / "begun"

    def make_worker() -> Process:
        def process(item: tuple[int, object]) -> dict[str, Any]:
            begun.touch()
            time.sleep(120)
            return {}

        return process

    def take_over() -> None:
        while not begun.exists():
            time.sleep(0.05)
        successor = {"host": "node7", "world": "", "pid": 12, "started_at": 1.0, "token": "a", "expiry_s": 60.0}
        (ledger_path(output.path) / "lease-00000002.json").write_text(json.dumps(successor))  # type: ignore[union-attr]

    rival = threading.Thread(target=take_over)
    rival.start()
    with pytest.raises(LeaseLostError, match="took it over"), claimed_output(output, settings) as lease:
        run_block_job(output, make_worker, settings, lease=lease)
    rival.join()
    assert time.time() - begun.stat().st_mtime < 60


def test_the_lease_is_held_from_claim_to_end_and_not_for_each_pass_alone(tmp_path: Path) -> None:
    """Between two passes, and while the attributes are written, nobody may begin anew."""
    settings = OutputSettings(**SETTINGS)  # type: ignore[arg-type]
    anew = OutputSettings(**SETTINGS, overwrite=True)  # type: ignore[arg-type]
    output = plan(tmp_path / "out.zarr", settings)
    with claimed_output(output, settings) as lease:
        run_block_job(output, lambda: lambda item: {}, settings, lease=lease, stage="faces")
        with pytest.raises(OutputInUseError, match="another driver works"), claimed_output(output, anew):
            pass
        run_block_job(output, lambda: lambda item: {}, settings, lease=lease)
    assert len(list(read_rows(output.path))) == 20
    with claimed_output(output, anew):
        assert list(read_rows(output.path)) == []


def test_a_refused_claim_leaves_no_trace(tmp_path: Path) -> None:
    """What came after the plan is found by the claim; what was there before, by the plan."""
    settings = OutputSettings(**SETTINGS)  # type: ignore[arg-type]
    output = plan(tmp_path / "out.zarr", settings)
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "out.zarr" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError, match=r"holds thesis.txt"):
        plan(tmp_path / "out.zarr", settings)
    for one in (settings, OutputSettings(**SETTINGS, overwrite=True)):  # type: ignore[arg-type]
        with pytest.raises(FileExistsError, match=r"holds thesis.txt"), claimed_output(output, one):
            pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out.zarr", "thesis.txt"]
