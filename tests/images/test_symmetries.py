"""The symmetries of the square: eight ways to lay a section down, each undone to the pixel."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.images.symmetries import SymmetryCount, check_square, symmetries_of

# No two of its orientations look alike.
LETTER = np.arange(9).reshape(3, 3, 1)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 3)),
    index=st.integers(0, 7),
)
def test_each_is_undone_to_the_pixel(shape: tuple[int, ...], index: int) -> None:
    symmetry = symmetries_of(8)[index]
    images = np.arange(np.prod(shape)).reshape(shape)
    laid = symmetry.apply(images)
    batch, y, x, channels = shape
    assert laid.shape == ((batch, x, y, channels) if symmetry.turns % 2 else shape)
    np.testing.assert_array_equal(symmetry.invert(laid), images)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_each_set_is_a_group_of_that_many_that_begins_with_the_identity(count: SymmetryCount) -> None:
    laid = {symmetry.apply(LETTER).tobytes() for symmetry in symmetries_of(count)}
    twice = {second.apply(first.apply(LETTER)).tobytes() for first, second in product(symmetries_of(count), repeat=2)}
    assert len(laid) == count and twice == laid
    np.testing.assert_array_equal(symmetries_of(count)[0].apply(LETTER), LETTER)


def test_four_are_the_flips_and_keep_the_extents() -> None:
    laid = {symmetry.apply(LETTER).tobytes() for symmetry in symmetries_of(4)}
    flips = [LETTER, LETTER[::-1], LETTER[:, ::-1], LETTER[::-1, ::-1]]
    assert laid == {flip.tobytes() for flip in flips}


def test_a_count_that_is_no_group_here_is_refused() -> None:
    with pytest.raises(ValueError, match=r"symmetries=7: there are 1 .* 4 .* and 8.*Try symmetries=8"):
        symmetries_of(7)  # type: ignore[arg-type]


def test_only_square_pixels_are_turned() -> None:
    told = r"symmetries=8 turns sections by 90 degrees, and voxels of 4 x 8 nm \(y, x\) are not square.*symmetries=4"
    with pytest.raises(ValueError, match=told):
        check_square(8, (50.0, 4.0, 8.0))
    check_square(8, (50.0, 4.0, 4.0))
    check_square(4, (50.0, 4.0, 8.0))
