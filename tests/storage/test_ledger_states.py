"""Promises about reading a ledger from outside: the latest row of a block counts, and nothing is opened or changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tessera.storage.ledger import Ledger, LedgerRow
from tessera.storage.ledger_states import read_states, stages_of

# 2 x 2 x 3 blocks; the last ones of y and x are cut off.
FACTS = {"workflow": "predict", "shape": [8, 7, 10], "block": [4, 4, 4]}


def record(output: Path, *rows: LedgerRow, stage: str | None = None) -> None:
    with Ledger.open(output, "key", FACTS, stage=stage) as ledger:
        for row in rows:
            ledger.append(row)


def row(block: int, status: str = "done", **values: object) -> LedgerRow:
    return LedgerRow(block, status, **values)  # type: ignore[arg-type]


def test_the_latest_row_of_a_block_counts_within_and_across_parts(tmp_path: Path) -> None:
    output = tmp_path / "em.zarr"
    record(output, row(3, "failed", error="disk"), row(3, finished_at=5.0), row(1))
    record(output, row(1, "failed", attempt=2, error="lost"))
    states = read_states(output)
    assert states.block.tolist() == [1, 3] and states.done.tolist() == [False, True]
    assert states.attempt.tolist() == [2, 1] and states.finished_at.tolist() == [0.0, 5.0]
    assert states.errors == {1: "lost"}
    assert len(states.grid) == 12 and states.workflow == "predict"


def test_voxels_are_those_of_the_boxes_also_at_the_far_edges(tmp_path: Path) -> None:
    record(tmp_path / "em.zarr", *(row(block) for block in (0, 5, 11)))
    states = read_states(tmp_path / "em.zarr")
    assert states.voxels(np.ones(3, bool)) == sum(states.grid.box(block).size for block in (0, 5, 11))
    assert states.voxels(np.array([False, True, False])) == 4 * 3 * 2


def test_a_job_that_has_begun_no_block_is_empty(tmp_path: Path) -> None:
    record(tmp_path / "em.zarr")
    states = read_states(tmp_path / "em.zarr")
    assert len(states.block) == 0 and states.voxels(states.done) == 0


def test_passes_are_told_in_their_order_the_nameless_one_last(tmp_path: Path) -> None:
    output = tmp_path / "em.zarr"
    record(output, row(0), stage="faces")
    assert stages_of(str(output)) == ["faces"]
    record(output)
    assert stages_of(str(output)) == ["faces", None]
    assert read_states(output, "faces").block.tolist() == [0]


def test_what_no_command_has_begun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tessera command has begun .*Give the output of"):
        stages_of(str(tmp_path / "em.zarr"))


def test_a_ledger_that_does_not_say_its_volume_is_refused(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "em.zarr", "key", {"workflow": "predict", "block": [4, 4, 4]}):
        pass
    with pytest.raises(ValueError, match=r"does not say its 'shape'.*begin again with `--overwrite true`"):
        read_states(tmp_path / "em.zarr")


def test_looking_changes_nothing(tmp_path: Path) -> None:
    def files() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))

    record(tmp_path / "em.zarr", row(0))
    before = files()
    read_states(tmp_path / "em.zarr")
    assert files() == before
