"""Promises about what stored numbers mean: greys, colours, palettes, inverted scales and values that are none."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from slices import COLOURS, STACK, paletted, whole, write_folder

from tessera.storage.stacks import open_stack


def test_bool_becomes_0_and_255(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK > 100)
    Image.fromarray(STACK[0] > 100).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        stack = open_stack(tmp_path / name, kind="labels")
        assert stack.dtype == np.uint8
        assert np.array_equal(stack.read_section(0), (STACK[0] > 100) * np.uint8(255))


def test_a_bilevel_page_whose_zero_is_white_is_inverted_unless_tifffile_said_so_by_default(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK > 100, photometric="miniswhite", software="scanner")
    stack = open_stack(tmp_path / "a.tif", kind="labels")
    assert np.array_equal(whole(stack), (STACK <= 100) * np.uint8(255))


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535), ("int16", -1)])
def test_white_is_zero_is_inverted_so_that_bright_stays_bright(tmp_path: Path, dtype: str, top: int) -> None:
    stored = STACK.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    read = open_stack(tmp_path / "a.tif", kind="image").read_section(1)
    assert np.array_equal(read.astype(int), top - stored[1].astype(int))
    kept = open_stack(tmp_path / "a.tif", kind="image", invert=False).read_section(1)
    assert np.array_equal(kept, stored[1])


def test_invert_true_inverts_what_no_header_calls_inverted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", STACK, "png")
    assert np.array_equal(open_stack(folder, kind="image", invert=True).read_section(0), 255 - STACK[0])


def test_an_inverted_mask_is_inverted_and_inverted_ids_are_refused(tmp_path: Path) -> None:
    mask = (STACK > 100) * np.uint8(255)
    tifffile.imwrite(tmp_path / "mask.tif", mask, photometric="miniswhite")
    assert np.array_equal(whole(open_stack(tmp_path / "mask.tif", kind="labels")), 255 - mask)
    tifffile.imwrite(tmp_path / "ids.tif", STACK, photometric="miniswhite")
    with pytest.raises(ValueError, match=r"page 2.*MINISWHITE hold more than two values.*invert=False"):
        open_stack(tmp_path / "ids.tif", kind="labels").read_section(2)
    assert np.array_equal(whole(open_stack(tmp_path / "ids.tif", kind="labels", invert=False)), STACK)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_colour_image_whose_channels_agree_is_grey(tmp_path: Path, channels: int, planar: str) -> None:
    parts = [STACK, STACK, STACK, np.full_like(STACK, 255)][:channels]
    stored = np.stack(parts, -1 if planar == "contig" else 1)
    alpha = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, **alpha)
    assert np.array_equal(whole(open_stack(tmp_path / "a.tif", kind="image")), STACK)


def test_grey_with_alpha_drops_the_alpha(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", np.stack([STACK, STACK // 2], -1), "png")
    assert np.array_equal(whole(open_stack(folder, kind="image")), STACK)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_label_colours_are_packed_into_ids(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "f"
    alpha = np.full((*COLOURS.shape[:3], 1), 7, np.uint8)
    if suffix == "png":
        write_folder(folder, np.concatenate([COLOURS, alpha], -1), "png")
    else:
        folder.mkdir()
        tifffile.imwrite(folder / "s1.tif", COLOURS[0], photometric="rgb")
    stack = open_stack(folder, kind="labels")
    red, green, blue = (COLOURS[0, ..., i].astype(np.uint32) for i in range(3))
    assert stack.dtype == np.uint32
    assert np.array_equal(stack.read_section(0), red * 65536 + green * 256 + blue)


def test_packing_is_decided_once_for_the_whole_stack(tmp_path: Path) -> None:
    """A section of greys among coloured ones is packed too: one object must not change its id along z."""
    grey_first = COLOURS.copy()
    grey_first[0] = grey_first[0, ..., :1]
    stack = open_stack(write_folder(tmp_path / "f", grey_first, "png"), kind="labels")
    assert np.array_equal(stack.read_section(0), grey_first[0, ..., 0].astype(np.uint32) * 0x010101)
    only_greys = open_stack(write_folder(tmp_path / "g", grey_first[:1], "png"), kind="labels")
    assert only_greys.dtype == np.uint8
    assert np.array_equal(only_greys.read_section(0), grey_first[0, ..., 0])


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_palette_indices_are_ids_for_labels_and_greys_for_images(tmp_path: Path, name: str) -> None:
    greys = np.repeat(np.arange(16, dtype=np.uint8)[::-1, None] * 10, 3, axis=1)
    path = paletted(tmp_path / name, greys)
    assert open_stack(path, kind="labels").read_section(0).ravel().tolist() == list(range(16))
    assert open_stack(path, kind="image").read_section(0).ravel().tolist() == [150 - 10 * i for i in range(16)]
    colours = np.random.default_rng(2).integers(0, 255, (16, 3), dtype=np.uint8)
    path = paletted(tmp_path / name, colours)
    assert open_stack(path, kind="labels").read_section(0).ravel().tolist() == list(range(16))
    with pytest.raises(ValueError, match="red, green and blue differ"):
        open_stack(path, kind="image").read_section(0)


@pytest.mark.parametrize("bits", [2, 4])
def test_narrow_png_greys_keep_their_ids(tmp_path: Path, bits: int) -> None:
    def piece(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, (1 << (8 - bits)) | (3 << (8 - 2 * bits))]))
    data = b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + piece(b"IDAT", pixels) + piece(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    assert open_stack(tmp_path / "a.png", kind="labels").read_section(0).tolist() == [[1, 3]]


def test_a_coloured_image_is_refused_where_it_is_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COLOURS, photometric="rgb")
    stack = open_stack(tmp_path / "a.tif", kind="image")
    with pytest.raises(ValueError, match=r"page 1: colour image.*Convert the stack to grey"):
        stack.read_section(1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_section(tmp_path: Path, value: float) -> None:
    stored = STACK.astype(np.float32)
    stored[2, 0, :3] = value
    tifffile.imwrite(tmp_path / "a.tif", stored)
    stack = open_stack(tmp_path / "a.tif", kind="image")
    assert np.array_equal(stack.read_section(1), stored[1])
    with pytest.raises(ValueError, match=r"section 2 \(page 2\): 3 values are NaN or infinite"):
        stack.read_section(2)


def test_inverting_floats_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK.astype(np.float32))
    with pytest.raises(ValueError, match="float values cannot be inverted"):
        open_stack(tmp_path / "a.tif", kind="image", invert=True).read_section(0)
