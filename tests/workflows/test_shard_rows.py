"""How a row of shards is planned: within memory, with as few decodings as fit, and refused where nothing fits."""

from __future__ import annotations

import pytest

from tessera.geometry.blocks import BlockGrid
from tessera.workflows.shard_rows import plan_rows, row_shard

SHAPE, CHUNK, SHARD = (64, 30_000, 30_000), (16, 256, 256), (64, 1024, 1024)
STRIPS, TILES, WHOLE = (8, 30_000), (512, 512), (30_000, 30_000)


def test_shards_under_wide_strips_become_less_deep_then_less_high_until_a_row_fits() -> None:
    assert row_shard(SHAPE, CHUNK, SHARD, 1, STRIPS) == (16, 1024, 1024)
    assert row_shard(SHAPE, CHUNK, SHARD, 2, STRIPS) == (16, 512, 1024)
    assert row_shard((64, 30_000, 400_000), CHUNK, SHARD, 1, (8, 400_000)) == (16, 256, 1024), "the least there is"
    assert row_shard((64, 4000, 4000), CHUNK, SHARD, 1, (8, 4000)) == SHARD, "a row of these fits as it is"


def test_shards_over_tiles_and_plain_rows_stay_as_they_are() -> None:
    for segment in (TILES, (480, 480), None):
        assert row_shard(SHAPE, CHUNK, SHARD, 1, segment) == SHARD
        assert row_shard(SHAPE, CHUNK, SHARD, 8, segment) == (16, 1024, 1024), "but for their weight"
    assert row_shard(SHAPE, CHUNK, SHARD, 1, (4096, 4096)) == SHARD, "four shards of a row meet every tile of theirs"


def test_a_row_of_the_shards_that_suit_a_source_is_decoded_once_within_the_usual_memory() -> None:
    for segment in (STRIPS, TILES, (1536, 1536), (2048, 2048)):
        for itemsize in (1, 2):
            shard = row_shard(SHAPE, CHUNK, SHARD, itemsize, segment)
            plan = plan_rows(BlockGrid(SHAPE, shard), itemsize, segment, itemsize, memory_gib=0.85)
            assert plan.decodings == 1, (segment, itemsize)
            assert plan.memory_bytes <= 0.85 * 2**30


def test_groups_shrink_with_the_memory_and_their_number_is_that_of_decodings() -> None:
    grid = BlockGrid(SHAPE, SHARD)
    plans = [plan_rows(grid, 1, STRIPS, 1, memory_gib) for memory_gib in (0.8, 1.0, 2.0, 8.0)]
    assert [(plan.group, plan.decodings) for plan in plans] == [(3, 10), (6, 5), (15, 2), (30, 1)]
    for plan, memory_gib in zip(plans, (0.8, 1.0, 2.0, 8.0), strict=True):
        assert plan.memory_bytes <= memory_gib * 2**30
        assert plan.decodings * plan.group >= grid.counts[2]


def test_tiles_that_cross_two_groups_are_decoded_twice_and_plain_rows_never() -> None:
    grid = BlockGrid(SHAPE, SHARD)
    assert plan_rows(grid, 1, (480, 480), 1, 1.0).decodings == 2
    assert plan_rows(grid, 1, TILES, 1, 1.0).group == 1
    assert plan_rows(grid, 1, None, 1, 1.0).decodings == 0


@pytest.mark.parametrize(
    ("segment", "memory_gib", "told"),
    [
        (
            STRIPS,
            0.5,
            r"memory_gib=0.5 is too little .* each 64 MiB, needs 0.66 GiB.*Try --memory_gib 0.7, or a",
        ),
        (WHOLE, 0.85, r"PNG of 30000x30000 px, 858 MiB and decoded whole, needs .*Try --memory_gib 2.35\."),
    ],
)
def test_too_little_memory_for_one_shard_is_refused_with_what_would_do(
    segment: tuple[int, int], memory_gib: float, told: str
) -> None:
    grid = BlockGrid(SHAPE, SHARD)
    with pytest.raises(ValueError, match=told):
        plan_rows(grid, 1, segment, 1, memory_gib)


def test_the_memory_that_a_refusal_names_is_enough() -> None:
    for segment, enough in ((STRIPS, 0.7), (WHOLE, 2.35)):
        assert plan_rows(BlockGrid(SHAPE, SHARD), 1, segment, 1, enough).group >= 1


def test_lanes_are_groups_of_one_row() -> None:
    grid = BlockGrid((32, 2048, 30_000), (16, 1024, 1024))
    plan = plan_rows(grid, 1, STRIPS, 1, 0.6)
    lanes = [plan.lane(grid, i) for i in range(len(grid))]
    assert lanes == sorted(lanes), "blocks of a lane follow each other"
    for lane in set(lanes):
        members = [grid.position(i) for i in range(len(grid)) if lanes[i] == lane]
        assert len(members) <= plan.group
        assert len({position[:2] for position in members}) == 1
