"""What a worker takes is planned within its budget, and does not know the volume's extent."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.geometry.blocks import BlockGrid
from tessera.model.spec import UnetSpec
from tessera.workflows.worker_plan import GIB, MIB, PROCESS_BYTES, BlockWork, plan_worker, worker_memory

WORK = BlockWork(UnetSpec(32, 4), BlockGrid((64, 4096, 4096), (4, 1024, 1024)), (0, 0, 0))


@settings(max_examples=40)
@given(st.integers(0, 4000), st.sampled_from([256, 512, 1024, 3072]), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_a_planned_worker_stays_within_its_budget(spare_mib: int, side: int, raw_bytes: int, in_flight: int) -> None:
    grid = BlockGrid((64, 6144, 6144), (4, side, side))
    work = replace(WORK, grid=grid, raw_bytes=raw_bytes, in_flight=in_flight)
    budget = PROCESS_BYTES + spare_mib * MIB
    try:
        plan = plan_worker(work, None, budget)
    except ValueError as error:
        # What it says would do, does.
        told = float(str(error).partition("--memory_gib ")[2].partition(",")[0])
        assert plan_worker(work, None, int(told * GIB)).memory.total <= told * GIB
        assert told * GIB > budget
        return
    assert plan.memory.total <= budget


def test_memory_does_not_know_the_volume_s_extent() -> None:
    larger = replace(WORK, grid=BlockGrid((512, 65536, 65536), (4, 1024, 1024)))
    assert plan_worker(WORK, None, 8 * GIB) == plan_worker(larger, None, 8 * GIB)


def test_a_given_tile_is_honoured_whatever_it_takes() -> None:
    plan = plan_worker(WORK, (1, 512, 512), GIB)
    assert plan.tile.tile == (1, 512, 512)
    assert plan.memory == worker_memory(WORK, plan.tile)
    assert plan.memory.total > plan.budget_bytes


def test_one_tile_for_the_block_where_it_fits_and_smaller_ones_where_not() -> None:
    assert plan_worker(WORK, None, 8 * GIB).tile.tile == (1, 1024, 1024)
    tight = plan_worker(WORK, None, 1900 * MIB).tile
    assert tight.tile != (1, 1024, 1024)
    assert tight.flops > plan_worker(WORK, None, 8 * GIB).tile.flops


def test_a_budget_below_the_smallest_tile_is_refused_with_what_would_do() -> None:
    with pytest.raises(
        ValueError,
        match=r"may take 1\.00 GiB and needs 1\.\d+ GiB \(process .*smallest tile, \[1, 16, 16\].*--memory_gib 1\.\d",
    ):
        plan_worker(WORK, None, GIB)
