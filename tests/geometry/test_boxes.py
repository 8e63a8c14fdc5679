"""Boxes: set algebra on half-open intervals, checked against sets of voxels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.geometry.boxes import Box

interval = st.tuples(st.integers(-6, 6), st.integers(0, 5)).map(lambda t: (t[0], t[0] + t[1]))
boxes = st.tuples(interval, interval).map(lambda t: Box((t[0][0], t[1][0]), (t[0][1], t[1][1])))


def _voxels(box: Box) -> set[tuple[int, ...]]:
    return set(product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


@given(boxes, boxes)
def test_clipping_keeps_exactly_the_shared_voxels(one: Box, other: Box) -> None:
    assert _voxels(one.clipped(other)) == _voxels(one) & _voxels(other)
    assert one.contains(one.clipped(other)) or one.clipped(other).size == 0


@given(boxes, boxes)
def test_containing_means_every_voxel(one: Box, other: Box) -> None:
    if other.size:
        assert one.contains(other) == (_voxels(other) <= _voxels(one))


@given(boxes, st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_growing_and_shifting_are_undone(box: Box, margin: tuple[int, int]) -> None:
    assert box.shifted(margin).relative_to(margin) == box
    grown = box.grown(margin)
    assert grown.shape == tuple(n + 2 * m for n, m in zip(box.shape, margin, strict=True))
    assert grown.contains(box)


@given(boxes)
def test_slices_read_the_box_or_refuse(box: Box) -> None:
    array = np.arange(144).reshape(12, 12)
    if min(box.start) < 0:
        with pytest.raises(ValueError, match=r"starts before voxel 0.*clip or mirror it first"):
            _ = box.slices
    else:
        assert array[box.slices].size == len(_voxels(box.clipped(Box.whole((12, 12)))))


def test_a_box_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"passes its stop"):
        Box((0, 3), (1, 2))
    with pytest.raises(ValueError, match="different numbers of axes"):
        Box((0,), (1, 2))
