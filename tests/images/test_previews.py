"""Pictures to lay over each other: grey below, membrane and cells above, and nothing where there is nothing."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tessera.images.colours import label_colours
from tessera.images.previews import encoded_png, fitted, section_picture


def test_raw_is_opaque_grey_and_float_raw_is_stretched() -> None:
    raw = np.array([[0, 128], [255, 7]], np.uint8)
    picture = section_picture("raw", raw)
    assert np.array_equal(picture[..., :3], np.repeat(raw[..., None], 3, 2)) and (picture[..., 3] == 255).all()
    stretched = section_picture("raw", np.linspace(-2, 2, 400).reshape(20, 20))
    assert (stretched[0, 0, 0], stretched[-1, -1, 0]) == (0, 255)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_probability_is_as_opaque_as_it_is_sure_whatever_its_dtype(dtype: type) -> None:
    values = np.array([[0, 51], [204, 255]], np.uint8)
    as_float = section_picture("probability", (values / 255).astype(dtype))
    assert np.array_equal(as_float[..., 3], values)
    assert np.array_equal(as_float, section_picture("probability", values))
    assert section_picture("probability", np.array([[np.nan, 2.0]], dtype))[0, :, 3].tolist() == [0, 255]


def test_an_id_has_its_colour_of_every_picture_and_0_is_transparent() -> None:
    ids = np.array([[0, 1], [2**40, 1]], np.uint64)
    picture = section_picture("labels", ids)
    assert np.array_equal(picture[..., :3], label_colours(ids)) and picture[..., 3].tolist() == [[0, 255], [255, 255]]


def test_ids_are_picked_and_greys_averaged_when_a_section_shrinks() -> None:
    ids = np.array([[1, 1, 9, 9], [1, 1, 9, 9]], np.uint64)
    assert fitted("labels", ids, (1, 2)).tolist() == [[1, 9]]
    assert fitted("labels", ids, (4, 4)).tolist() == [[1, 1, 9, 9]] * 4
    assert fitted("raw", np.array([[0, 100], [0, 100]], np.uint8), (1, 1)).tolist() == [[50]]
    assert fitted("raw", ids, (2, 4)) is ids


def test_a_png_holds_every_pixel_with_red_first() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encoded_png(picture), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGBA), picture)


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 4, 4\) has no pixels: give at least 1x1"):
        encoded_png(np.zeros((0, 4, 4), np.uint8))
