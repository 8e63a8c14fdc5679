"""Labels of every kind become one target, in which unknown is a value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from tessera.images.targets import CELL, MEMBRANE, UNKNOWN, LabelRule, UnknownLabel, known_pixels

VALUES = st.sampled_from([0, 1, 7, 255])


@given(arrays.arrays(np.uint8, (4, 5), elements=VALUES), st.booleans(), st.sampled_from([None, 7, 255]))
def test_zero_is_membrane_one_value_is_unknown_and_the_rest_is_cell(
    labels: NDArray[np.uint8], membranes: bool, unknown: int | None
) -> None:
    target = LabelRule("membranes" if membranes else "mask", unknown=unknown).target(labels)
    classes = (CELL, MEMBRANE) if membranes else (MEMBRANE, CELL)
    expected = [UNKNOWN if v == unknown else classes[0 if v == 0 else 1] for v in labels.flat]
    assert target.dtype == np.uint8 and target.ravel().tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.int16, np.int64])
def test_largest_is_the_greatest_label_of_the_dtype(dtype: Any) -> None:
    most = np.iinfo(dtype).max
    target = LabelRule(unknown="largest").target(np.array([0, 3, most - 1, most], dtype))
    assert target.tolist() == [MEMBRANE, CELL, CELL, UNKNOWN]
    assert LabelRule(unknown=int(most)).target(np.array([0, 3, most], dtype)).tolist() == [MEMBRANE, CELL, UNKNOWN]


def test_a_negative_label_may_mean_unknown_and_nothing_else() -> None:
    labels = np.array([-1, 0, 5], np.int32)
    assert LabelRule(unknown=-1).target(labels).tolist() == [UNKNOWN, MEMBRANE, CELL]
    with pytest.raises(ValueError, match=r"labels hold negative values, the least is -2: 0 is membrane"):
        LabelRule(unknown=-1).target(np.array([-1, -2, 0], np.int32))


def test_bool_labels_know_everything() -> None:
    assert LabelRule(unknown="largest").target(np.array([False, True])).tolist() == [MEMBRANE, CELL]


@pytest.mark.parametrize("unknown", [None, "largest", 2**64 - 1, 5])
def test_the_mark_of_cremi_is_unknown_whether_declared_or_not(unknown: UnknownLabel) -> None:
    labels = np.array([[0, 5, 2**64 - 1, 2**64 - 1]], np.uint64)
    for are in ("mask", "instances"):
        target = LabelRule(are, unknown=unknown).target(labels)  # type: ignore[arg-type]
        assert target.tolist() == [[MEMBRANE, UNKNOWN if unknown == 5 else CELL, UNKNOWN, UNKNOWN]]


# Borders of instances


@given(
    arrays.arrays(np.uint8, (2, 7, 8), elements=st.sampled_from([0, 1, 1, 2, 2, 9])),
    st.integers(0, 7),
)
def test_a_border_is_what_lies_within_half_its_width_of_another_cell(labels: NDArray[np.uint8], width: int) -> None:
    target = LabelRule("instances", border_px=width, unknown=9).target(labels)
    for z, y, x in np.ndindex(labels.shape):
        own = labels[z, y, x]
        others = np.argwhere((labels[z] != own) & (labels[z] != 0) & (labels[z] != 9))
        near = [(j, i) for j, i in others if 4 * ((j - y) ** 2 + (i - x) ** 2) <= width**2]
        expected = UNKNOWN if own == 9 else MEMBRANE if own == 0 or near else CELL
        assert target[z, y, x] == expected, (z, y, x)


def test_an_even_border_takes_as_much_of_either_cell() -> None:
    labels = np.repeat(np.array([[3, 8]], np.uint64), 6, axis=1)
    for width in (2, 4, 6):
        assert np.flatnonzero(LabelRule("instances", border_px=width).target(labels)).tolist() == list(
            range(6 - width // 2, 6 + width // 2)
        )


def test_a_membrane_that_is_drawn_already_grows_no_wider() -> None:
    labels = np.array([[3, 3, 0, 8, 8]], np.uint8)
    assert LabelRule("instances", border_px=2).target(labels).tolist() == [[0, 0, 1, 0, 0]]


def test_a_border_of_no_sensible_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"border_px=-1: the membrane between .* 0 to 64 pixels wide\. Try 2"):
        LabelRule("instances", border_px=-1)


def test_a_value_that_no_pixel_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown_label=300 does not fit labels of uint8, 0 to 255.*such as 255"):
        LabelRule(unknown=300).target(np.zeros((2, 2), np.uint8))


# Drawing known pixels


def test_known_pixels_are_drawn_alike_and_unknown_ones_never() -> None:
    rng = np.random.default_rng(0)
    targets = [np.full((3, 4), UNKNOWN, np.uint8), np.zeros((2, 2), np.uint8), np.full((5, 3), UNKNOWN, np.uint8)]
    targets[0][1, 2], targets[2][4] = 1, 0
    known = known_pixels(targets)
    assert known is not None
    drawn = [known.draw(rng) for _ in range(8000)]
    places = {(z, y, x) for z, target in enumerate(targets) for y, x in np.argwhere(target != UNKNOWN).tolist()}
    counts = {place: sum((z, *at) == place for z, at in drawn) for place in places}
    assert sum(counts.values()) == 8000, "each is one of the known pixels"
    assert min(counts.values()) > 850 and max(counts.values()) < 1150  # 1000 expected, 5 sigma either way


def test_where_all_is_known_there_is_nothing_to_look_for() -> None:
    assert known_pixels([np.zeros((2, 2), np.uint8), np.ones((2, 3), np.uint8)]) is None
