"""Label colours that stay with their ids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tessera.images.colours import label_colours, shown_grey, target_colours
from tessera.images.targets import CELL, MEMBRANE, UNKNOWN


@given(hnp.arrays(np.uint64, (4, 5), elements=st.integers(0, 2**64 - 1)))
def test_a_labels_colour_depends_on_its_id_alone(labels: NDArray[np.uint64]) -> None:
    colours = label_colours(labels)
    assert (colours.shape, colours.dtype) == ((4, 5, 3), np.uint8)
    np.testing.assert_array_equal(colours[2, 3], label_colours(labels[2, 3][None])[0])


def test_no_label_is_black_and_no_cell_is_dark() -> None:
    colours = label_colours(np.array([0, 1, 2**64 - 1, 192**3], np.uint64))
    assert colours[0].tolist() == [0, 0, 0]
    assert colours[1:].min() >= 64


@pytest.mark.parametrize("first", [1, 2**63])
def test_a_million_consecutive_ids_have_a_million_colours(first: int) -> None:
    colours = label_colours(np.arange(first, first + 1_000_000, dtype=np.uint64)).astype(np.uint32)
    assert len(np.unique(colours @ np.array([65536, 256, 1], np.uint32))) == 1_000_000


def test_ids_of_one_picture_are_easily_told_apart() -> None:
    colours = label_colours(np.arange(1, 501)).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).max(axis=2)
    assert apart[np.triu_indices(500, 1)].min() >= 20


def test_the_colours_of_today_are_those_of_tomorrow() -> None:
    assert label_colours(np.array([1, 2, 3], np.uint64)).tolist() == [[119, 255, 191], [175, 255, 126], [231, 254, 253]]


@pytest.mark.parametrize("labels", [np.array([0.5]), np.array([-1])])
def test_labels_that_are_no_ids_are_errors(labels: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="ids are integers of 0 or more"):
        label_colours(labels)


def test_grey_values_of_any_type_are_shown_from_black_to_white() -> None:
    section = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert shown_grey(section) is section
    wide = shown_grey(section.astype(np.uint16) * 200 + 5000)
    assert (wide.min(), wide.max(), wide.dtype) == (0, 255, np.uint8)
    assert (np.diff(wide.ravel().astype(int)) >= 0).all()
    assert (shown_grey(np.full((4, 4), 7.5, np.float32)) == 0).all(), "a constant section is no error"


def test_unknown_pixels_have_a_colour_of_their_own() -> None:
    membrane, cell, unknown = target_colours(np.array([MEMBRANE, CELL, UNKNOWN], np.uint8)).tolist()
    assert (membrane, cell) == ([255, 255, 255], [0, 0, 0])
    assert len(set(unknown)) > 1, "neither black, white nor grey"
