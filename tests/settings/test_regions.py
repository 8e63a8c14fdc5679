"""A region in nanometers becomes the whole voxels that it touches, or is refused with the range that is legal."""

from __future__ import annotations

from math import isclose

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tessera.geometry.boxes import Box
from tessera.settings.predict import PredictSettings
from tessera.settings.regions import parse_roi_nm

SHAPE, SIZE, CORNER = (20, 64, 96), (50.0, 4.0, 4.0), (0.0, 0.0, 0.0)


@given(st.data())
def test_whole_voxels_read_back_whatever_the_size_and_the_translation(data: st.DataObject) -> None:
    size, corner = data.draw(st.floats(0.1, 99)), data.draw(st.floats(-1e5, 1e5))
    start = data.draw(st.integers(0, 19))
    stop = data.draw(st.integers(start + 1, 20))
    text = f"{corner + start * size}:{corner + stop * size},:,:"
    assert parse_roi_nm(text, SHAPE, (size, 4, 4), (corner, 0, 0)) == Box((start, 0, 0), (stop, 64, 96))


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_a_range_is_rounded_outward_by_less_than_a_voxel(a: float, b: float) -> None:
    a, b = sorted((a, b))
    assume(b - a > 0.01)
    box = parse_roi_nm(f"{a}:{b},:,:", SHAPE, SIZE, CORNER)
    first, last = box.start[0] * 50, box.stop[0] * 50
    assert first <= a + 1e-3 and last >= b - 1e-3, "all that was asked for is there"
    assert a - first < 50 or isclose(a, first + 50, rel_tol=1e-4)
    assert last - b < 50 or isclose(b, last - 50, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("0:500,0:256,0:384", (0, 0, 0), (10, 64, 96)),
        ("0:500.1,0:255,0:1", (0, 0, 0), (11, 64, 1)),
        (" 49:51 , 1e2:2e2 , .5: ", (0, 25, 0), (2, 50, 96)),
        ("999.9999999:1000,:,:", (19, 0, 0), (20, 64, 96)),
        (":,:,:", (0, 0, 0), SHAPE),
    ],
)
def test_ranges_are_numbers_and_bounds_may_be_left_out(text: str, start: object, stop: object) -> None:
    box = parse_roi_nm(text, SHAPE, SIZE, CORNER)
    assert (box.start, box.stop) == (start, stop)


def test_a_translated_volume_is_asked_in_its_own_coordinates() -> None:
    box = parse_roi_nm("-100:0,104:112,:", SHAPE, SIZE, (-200.0, 100.0, 0.0))
    assert box == Box((2, 1, 0), (4, 3, 96))


@pytest.mark.parametrize(
    "text", ["x", "", "0:1", "0:1,0:1", "0:1,0:1,0:1,0:1", "0-1,0-1,0-1", "nan:1,:,:", "0:50nm,:,:"]
)
def test_text_that_is_no_region_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"not three ranges z, y, x, in nanometers\. Try 0:1000,0:256,0:384\."):
        parse_roi_nm(text, SHAPE, SIZE, CORNER)


@pytest.mark.parametrize(
    "text", ["500:0,:,:", "5:5,:,:", "0:1001,:,:", "-1:50,:,:", ":,:,384:", "1000:,:,:", "0:1e999,:,:"]
)
def test_a_region_outside_is_refused_with_where_the_volume_lies(text: str) -> None:
    with pytest.raises(ValueError, match=r"passes the volume, which reaches from 0 to 1000, 0 to 256, 0 to 384 nm"):
        parse_roi_nm(text, SHAPE, SIZE, CORNER)


def test_voxels_of_unknown_size_and_two_regions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"does not say how large its voxels are\. Give --voxel_size_nm"):
        parse_roi_nm("0:1,:,:", SHAPE, None, None)
    with pytest.raises(ValueError, match=r"are both given: they may name two regions\. Leave one out"):
        PredictSettings("v", "m", "o", roi="0:1,:,:", roi_nm="0:50,:,:")
