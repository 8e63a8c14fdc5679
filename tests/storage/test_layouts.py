"""Promises about chunks and shards: shards are whole chunks, cover the volume, and legal boxes are whole shards."""

from __future__ import annotations

from math import ceil, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.geometry.boxes import Box
from tessera.storage.layouts import Layout, legal_layout

shapes = st.tuples(st.integers(1, 300), st.integers(1, 20_000), st.integers(1, 20_000))
itemsizes = st.sampled_from([1, 2, 4, 8])
small = st.tuples(*[st.integers(1, 9)] * 3)


@settings(deadline=None)
@given(shapes, itemsizes)
def test_default_shards_are_whole_chunks_and_no_larger_than_memory_allows(
    shape: tuple[int, ...], itemsize: int
) -> None:
    layout = legal_layout(shape, itemsize)
    assert all(s % c == 0 for s, c in zip(layout.shard, layout.chunk, strict=True))
    assert all(c <= n for c, n in zip(layout.chunk, shape, strict=True))
    assert all(s <= limit for s, limit in zip(layout.shard, (64, 1024, 1024), strict=True))
    assert prod(layout.shard) * itemsize <= 128 * 2**20


@settings(deadline=None)
@given(shapes, itemsizes)
def test_fewer_than_eight_shards_only_where_a_shard_is_one_chunk(shape: tuple[int, ...], itemsize: int) -> None:
    layout = legal_layout(shape, itemsize)
    assert layout.shards(shape) >= 8 or layout.shard == layout.chunk


@settings(deadline=None)
@given(shapes, st.none() | small, st.none() | small)
def test_what_is_given_is_kept_and_the_rest_fits_it(
    shape: tuple[int, ...], chunk: tuple[int, ...] | None, factor: tuple[int, ...] | None
) -> None:
    base = chunk or (4, 30, 7)
    shard = factor and tuple(c * f for c, f in zip(base, factor, strict=True))
    layout = legal_layout(shape, 1, chunk, shard)
    assert chunk in (None, layout.chunk) and shard in (None, layout.shard)
    assert all(s % c == 0 for s, c in zip(layout.shard, layout.chunk, strict=True))


@given(small, small)
def test_the_shards_cover_every_voxel_once_and_each_is_a_legal_box(
    shape: tuple[int, ...], shard: tuple[int, ...]
) -> None:
    layout, whole = Layout((1, 1, 1), shard), Box.whole(shape)
    starts = [range(0, n, s) for n, s in zip(shape, shard, strict=True)]
    boxes = [
        Box((z, y, x), tuple(a + s for a, s in zip((z, y, x), shard, strict=True))).clipped(whole)
        for z in starts[0]
        for y in starts[1]
        for x in starts[2]
    ]
    assert len(boxes) == layout.shards(shape)
    assert sum(box.size for box in boxes) == whole.size
    assert all(layout.is_aligned(box, shape) for box in boxes)


@given(small, small, st.data())
def test_the_aligned_box_is_legal_and_the_smallest_around(
    shape: tuple[int, ...], shard: tuple[int, ...], data: st.DataObject
) -> None:
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    layout, box = Layout((1, 1, 1), shard), Box(start, stop)
    around = layout.aligned(box, shape)
    assert around.contains(box) and layout.is_aligned(around, shape)
    assert all(box.start[i] - around.start[i] < shard[i] for i in range(3))
    assert all(around.stop[i] == min(ceil(stop[i] / shard[i]) * shard[i], shape[i]) for i in range(3))
    assert layout.is_aligned(box, shape) == (around == box)


def test_known_volumes_get_known_layouts() -> None:
    assert legal_layout((30, 512, 512)) == Layout((16, 256, 256), (16, 256, 256))
    assert legal_layout((4, 4096, 4096)) == Layout((4, 256, 256), (4, 1024, 1024))
    assert legal_layout((1000, 10_000, 10_000)) == Layout((16, 256, 256), (64, 1024, 1024))
    assert legal_layout((1000, 10_000, 10_000), 8) == Layout((16, 256, 256), (64, 512, 512))
    assert legal_layout((1, 700, 700)) == Layout((1, 256, 256), (1, 256, 256))


def test_each_channel_has_shards_of_its_own() -> None:
    layout = legal_layout((3, 1000, 10_000, 10_000))
    assert layout == Layout((1, 16, 256, 256), (1, 64, 1024, 1024))
    assert legal_layout((3, 9, 9, 9), 1, (2, 2, 2), (4, 4, 4)) == Layout((1, 2, 2, 2), (1, 4, 4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((30, 512, 512), 1, (16, 64, 64), (24, 64, 64)), r"not a multiple of chunk.*Try shard \(32, 64, 64\)"),
        (((30, 512, 512), 1, (0, 64, 64)), "chunk=.*one positive integer per axis, for example .16, 256, 256"),
        (((30, 512, 512), 1, None, (16, -64, 64)), "shard=.*one positive integer per axis, for example .64"),
        (((30, 512, 512), 1, (16, 64)), "one positive integer per axis"),
        (((30, 512, 512), 1, (16, 64.5, 64)), "one positive integer per axis"),
        (((512, 512),), "a volume has axes z, y, x.*A single section is"),
        (((1, 1, 1, 5, 5),), "a volume has axes"),
        (((30, 0, 512),), "each at least 1 voxel long"),
    ],
)
def test_layouts_that_cannot_be_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        legal_layout(*arguments)


@pytest.mark.parametrize(("chunk", "shard"), [((1, 1), (1, 1, 1)), ((0, 1, 1), (1, 1, 1))])
def test_a_layout_checks_itself(chunk: tuple[int, ...], shard: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="as many positive extents"):
        Layout(chunk, shard)


def test_boxes_outside_or_empty_are_not_aligned() -> None:
    layout = Layout((1, 2, 2), (1, 4, 4))
    assert not layout.is_aligned(Box((0, 0, 0), (0, 4, 4)), (3, 9, 9))
    assert not layout.is_aligned(Box((0, -4, 0), (1, 4, 4)), (3, 9, 9))
    assert not layout.is_aligned(Box((0, 8, 8), (1, 12, 12)), (3, 9, 9))
