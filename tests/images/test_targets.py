"""Labels of every kind become one target, in which unknown is a value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from tessera.images.targets import CELL, MEMBRANE, UNKNOWN, known_pixels, target_of_labels

VALUES = st.sampled_from([0, 1, 7, 255])


@given(arrays.arrays(np.uint8, (4, 5), elements=VALUES), st.booleans(), st.sampled_from([None, 7, 255]))
def test_zero_is_membrane_one_value_is_unknown_and_the_rest_is_cell(
    labels: NDArray[np.uint8], invert: bool, unknown: int | None
) -> None:
    target = target_of_labels(labels, invert=invert, unknown=unknown)
    classes = (CELL, MEMBRANE) if invert else (MEMBRANE, CELL)
    expected = [UNKNOWN if v == unknown else classes[0 if v == 0 else 1] for v in labels.flat]
    assert target.dtype == np.uint8 and target.ravel().tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64, np.int16, np.int64])
def test_largest_is_the_greatest_label_of_the_dtype(dtype: Any) -> None:
    most = np.iinfo(dtype).max
    target = target_of_labels(np.array([0, 3, most - 1, most], dtype), unknown="largest")
    assert target.tolist() == [MEMBRANE, CELL, CELL, UNKNOWN]
    assert target_of_labels(np.array([0, 3, most], dtype), unknown=int(most)).tolist() == [MEMBRANE, CELL, UNKNOWN]


def test_a_negative_label_may_mean_unknown_and_nothing_else() -> None:
    labels = np.array([-1, 0, 5], np.int32)
    assert target_of_labels(labels, unknown=-1).tolist() == [UNKNOWN, MEMBRANE, CELL]
    with pytest.raises(ValueError, match=r"labels hold negative values, the least is -2: 0 is membrane"):
        target_of_labels(np.array([-1, -2, 0], np.int32), unknown=-1)


def test_bool_labels_know_everything() -> None:
    assert target_of_labels(np.array([False, True]), unknown="largest").tolist() == [MEMBRANE, CELL]


def test_the_mark_of_cremi_is_refused_unless_it_was_declared() -> None:
    labels = np.array([0, 5, 2**64 - 1, 2**64 - 1], np.uint64)
    with pytest.raises(
        ValueError, match=r"largest uint64, 18446744073709551615, in 2 pixels.*unknown_label to largest"
    ):
        target_of_labels(labels)
    assert target_of_labels(labels, unknown="largest").tolist() == [MEMBRANE, CELL, UNKNOWN, UNKNOWN]


def test_a_value_that_no_pixel_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown_label=300 does not fit labels of uint8, 0 to 255.*such as 255"):
        target_of_labels(np.zeros((2, 2), np.uint8), unknown=300)


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
