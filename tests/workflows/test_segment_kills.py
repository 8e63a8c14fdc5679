"""Segmentations that are killed in every stage end with the labels of an undisturbed run, and do nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mortal_segment
from tessera.storage.ledger import read_rows
from tessera.storage.ledger_states import stages_of
from tessera.storage.volumes import open_volume
from tessera.workflows.predict import KIND
from volumes import put_volume

LAYOUT: dict[str, Any] = {"chunk": [2, 16, 16], "shard": [2, 16, 16], "engine": "serial", "threshold": 0.85}


def killed(home: Path, kills: int, **settings: Any) -> list[dict[str, int]]:
    """Kill a job, and check what it leaves against a run that nobody disturbed."""
    noise = np.random.default_rng(5).integers(0, 256, (4, 24, 24), dtype=np.uint8)
    put_volume(home / "p.zarr", np.kron(noise, np.ones((1, 4, 4), np.uint8)), kind=KIND)
    told = {"volume": str(home / "p.zarr"), "output": str(home / "out.zarr"), **LAYOUT, **settings}
    (home / "settings.json").write_text(json.dumps(told))
    command = [sys.executable, mortal_segment.__file__, str(home / "settings.json"), str(kills), "7"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=3000)
    quiet, output = (open_volume(home / f"{name}.zarr") for name in ("quiet", "out"))
    np.testing.assert_array_equal(output.array[:], quiet.array[:])
    assert output.attributes["complete"] is True
    assert output.attributes["cells"] == quiet.attributes["cells"] == output.array[:].max() > 10
    for made in (path for path in home.glob("out*.zarr")):
        for stage in stages_of(made):
            rows = Counter((row.block, row.status) for row in read_rows(made, stage=stage))
            assert set(rows.values()) == {1}, f"{made.name}, {stage}: what was on record was done again"
    struck: list[dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return struck


def test_cells_of_a_job_that_is_killed_three_times_are_those_of_one_that_is_not(home: Path) -> None:
    struck = killed(home, 3, connectivity=26)
    assert len(struck) == 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cells_outlive_twenty_kills_in_every_stage(home: Path) -> None:
    struck = killed(home, 20, connectivity=26, shard=[2, 12, 12], chunk=[2, 12, 12])
    reached = Counter(stage for kill in struck for stage, count in kill.items() if count)
    assert len(struck) == 20 and len(reached) == 3, reached


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fragments_and_merged_cells_outlive_twenty_kills_in_every_stage(home: Path) -> None:
    struck = killed(home, 20, method="watershed", threshold=0.5, shard=[2, 12, 12], chunk=[2, 12, 12])
    np.testing.assert_array_equal(*(open_volume(home / f"{n}-fragments.zarr").array[:] for n in ("out", "quiet")))
    reached = Counter(stage for kill in struck for stage, count in kill.items() if count)
    assert len(struck) == 20 and len(reached) == 5, reached
