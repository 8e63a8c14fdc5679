"""The tile that is planned is legal, fits, and costs no more than any other that fits; its cost is the graph's own."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.geometry.arithmetic import fold, unet_records
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.geometry.network_cost import NetworkCost, unet_cost
from tessera.geometry.tile_plan import NoTileFitsError, block_extents, given_tile, plan_tile
from tessera.geometry.tiles import tiles_of

extents = st.tuples(st.integers(1, 5), st.integers(1, 90), st.integers(1, 90))
blocks = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
starts = st.tuples(*[st.integers(0, 40)] * 3)
depths = st.integers(1, 3)
sections = st.sampled_from([1, 3])
memories = st.integers(10**3, 10**7)


def _network(depth: int, input_sections: int) -> tuple[NetworkCost, object]:
    return unet_cost(depth, 4, input_sections), fold(unet_records(depth, input_sections=input_sections))


@settings(max_examples=60)
@given(extents, depths, sections, memories)
def test_no_legal_tile_that_fits_costs_less_than_the_planned_one(
    extent: tuple[int, int, int], depth: int, input_sections: int, memory: int
) -> None:
    cost, arithmetic = _network(depth, input_sections)
    # Every tile that a user could give: each legal number of useful voxels along each axis.
    sides = [
        range(axis.useful_extent(1), axis.useful_extent(n) + 1, axis.period)
        for n, axis in zip(extent, arithmetic.axes, strict=True)
    ]
    others = [given_tile(tile, extent, arithmetic, cost) for tile in product(*sides)]
    fitting = [plan for plan in others if plan.activation_bytes <= memory]
    if not fitting:
        with pytest.raises(NoTileFitsError, match=r"the smallest tile, \[1, \d+, \d+\], holds .* MiB of activations"):
            plan_tile(extent, arithmetic, cost, memory)
        return
    planned = plan_tile(extent, arithmetic, cost, memory)
    assert planned.activation_bytes <= memory
    assert planned.flops == min(plan.flops for plan in fitting)
    assert planned.activation_bytes == min(p.activation_bytes for p in fitting if p.flops == planned.flops)


@settings(max_examples=60)
@given(extents, depths, sections, memories, st.tuples(*[st.integers(0, 9)] * 3))
def test_a_planned_tile_is_cut_as_it_was_planned(
    extent: tuple[int, int, int], depth: int, input_sections: int, memory: int, periods: tuple[int, int, int]
) -> None:
    """Its passes, shapes and operations are those of the tiles that a worker then cuts."""
    cost, arithmetic = _network(depth, input_sections)
    try:
        plan = plan_tile(extent, arithmetic, cost, memory)
    except NoTileFitsError:
        return
    start = tuple(at * period for at, period in zip(periods, arithmetic.period, strict=True))
    tiles = list(tiles_of(Box.whole(extent).shifted(start), plan.tile, arithmetic))
    assert len(tiles) == plan.passes
    assert {arithmetic.input_box(tile.useful).shape for tile in tiles} == {plan.input_shape}
    assert arithmetic.output_shape(plan.input_shape)
    assert plan.flops == sum(cost.flops(arithmetic.input_box(tile.useful).shape) for tile in tiles)


@settings(max_examples=60)
@given(extents, depths, memories, memories)
def test_more_memory_never_costs_more(extent: tuple[int, int, int], depth: int, one: int, other: int) -> None:
    cost, arithmetic = _network(depth, 1)
    try:
        tight = plan_tile(extent, arithmetic, cost, min(one, other))
    except NoTileFitsError:
        return
    assert plan_tile(extent, arithmetic, cost, max(one, other)).flops <= tight.flops


@settings(max_examples=40)
@given(
    extents, st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)), st.tuples(*[st.integers(0, 40)] * 3)
)
def test_no_block_is_longer_from_the_network_s_grid_than_was_planned_for(
    shape: tuple[int, int, int], block: tuple[int, int, int], start: tuple[int, int, int]
) -> None:
    arithmetic = fold(unet_records(2))
    grid = BlockGrid(shape, block)
    found = [
        tuple(b - a + a % p for a, b, p in zip(box.start, box.stop, arithmetic.period, strict=True))
        for box in (grid.box(index).shifted(start) for index in range(len(grid)))
    ]
    assert block_extents(grid, start, arithmetic) == tuple(max(extent) for extent in zip(*found, strict=True))


@pytest.mark.parametrize(("useful", "kiloflops"), [(384, 511), (1024, 416), (2048, 391)])
def test_operations_per_useful_pixel_are_those_that_were_counted(useful: int, kiloflops: int) -> None:
    """Of the U-Net with 32 filters; counted by hand, convolution by convolution."""
    cost = unet_cost(depth=4, filters=32)
    assert round(cost.flops((1, useful + 188, useful + 188)) / useful**2 / 1000) == kiloflops


def test_activations_are_those_of_the_widest_place() -> None:
    """Depth 1, 8 filters, 20 px: the two 8-channel halves of 12 px and their 16-channel union, all at once."""
    assert unet_cost(depth=1, filters=8).activation_bytes((1, 20, 20)) == max(
        4 * (16 + 16) * 12**2,  # the join
        4 * (8 * 18**2 + 8 * 16**2),  # the first pair
    )


def test_weights_are_those_of_the_layers() -> None:
    """Depth 1, 2 filters: 3x3 convolutions 1-2-2, 2-4-4, an up 4-2, 4-2-2, and the last 1x1."""
    numbers = 9 * (1 * 2 + 2 * 2 + 2 * 4 + 4 * 4 + 4 * 2 + 2 * 2) + 4 * (4 * 2) + 2
    assert unet_cost(depth=1, filters=2).weight_bytes == 4 * numbers
