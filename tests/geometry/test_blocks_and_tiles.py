"""Grids and tiles cover every voxel exactly once, whatever the shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.geometry.arithmetic import fold, unet_records
from tessera.geometry.blocks import BlockAxis, BlockGrid, check_alignment
from tessera.geometry.boxes import Box
from tessera.geometry.tiles import tiles_of, widest_context

extents = st.tuples(*[st.integers(1, 40)] * 3)


@given(extents, extents)
def test_blocks_cover_every_voxel_exactly_once(shape: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    grid = BlockGrid(shape, tuple(min(b, n) for b, n in zip(block, shape, strict=True)))
    times = np.zeros(shape, int)
    for index, box in grid.boxes():
        times[box.slices] += 1
        assert grid.index(grid.position(index)) == index
    assert (times == 1).all()


def test_neighbours_stay_inside_the_grid() -> None:
    grid = BlockGrid((4, 4, 4), (2, 2, 2))
    assert grid.neighbour(0, (0, 0, 1)) == 1
    assert grid.neighbour(1, (0, 0, 1)) is None
    assert grid.neighbour(0, (1, 1, 1)) == 7
    with pytest.raises(IndexError, match="block 8 is outside a grid of 8 blocks"):
        grid.box(8)


def test_an_empty_axis_has_no_blocks() -> None:
    with pytest.raises(ValueError, match="must both be at least 1 voxel"):
        BlockAxis(extent=0, block=4)


def test_a_block_across_shards_is_refused_with_a_legal_one() -> None:
    with pytest.raises(
        ValueError, match=r"two tasks would write one shard and lose data\. Try block=\(64, 1024, 1024\)"
    ):
        check_alignment((64, 1000, 1024), (64, 1024, 1024), (128, 4096, 4096))
    check_alignment((64, 2048, 1024), (64, 1024, 1024), (128, 4096, 4096))
    check_alignment((30, 600, 600), (16, 256, 256), (30, 600, 600))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), extents, extents, extents)
def test_tiles_cover_a_block_exactly_once_on_the_grid_of_voxel_0(
    depth: int, start: tuple[int, ...], shape: tuple[int, ...], tile: tuple[int, ...]
) -> None:
    arithmetic = fold(unet_records(depth))
    core = Box(start, tuple(a + 3 * n for a, n in zip(start, shape, strict=True)))
    tiles = list(tiles_of(core, tile, arithmetic))
    times = np.zeros(core.shape, int)
    context = widest_context(core, tile, arithmetic)
    for piece in tiles:
        times[piece.keep.relative_to(core.start).slices] += 1
        assert all(a % p == 0 for a, p in zip(piece.useful.start, arithmetic.period, strict=True))
        assert arithmetic.output_shape(arithmetic.input_box(piece.useful).shape)
        assert context.contains(arithmetic.input_box(piece.useful))
    assert (times == 1).all()
    assert len({piece.useful.shape for piece in tiles}) == 1, "one shape, one compiled graph"


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(17, 300), st.integers(16, 200))
def test_tiles_are_no_larger_than_asked(depth: int, extent: int, most: int) -> None:
    arithmetic = fold(unet_records(depth))
    least = arithmetic.axes[2].useful_extent(1)
    for piece in tiles_of(Box((0, 0, 0), (1, 1, extent)), (1, most, most), arithmetic):
        assert piece.useful.shape[2] <= max(most, least)
