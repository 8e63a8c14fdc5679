"""A window of a section is that part of the section, whatever the file looks like; nothing else of it is decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slices import paletted

from sparse_tiff import DEFLATE, NONE, ZSTD, write_sparse
from tessera.geometry.boxes import Box
from tessera.storage.dask_windows import opened_with_dask
from tessera.storage.page_windows import bands, opened
from tessera.storage.pixels import Kind
from tessera.storage.stacks import SliceStack, open_stack

SHAPE = (70, 90)
RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (2, *SHAPE, 3), dtype=np.uint8)
ALL_GREY = np.repeat(GREY[..., None], 3, -1)
WITH_ALPHA = np.concatenate([ALL_GREY, 255 - ALL_GREY[..., :1]], -1)


def _tiff(values: NDArray[Any], **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tifffile.imwrite(folder / "a.tif", values, **({"photometric": "minisblack"} | options))
        return folder / "a.tif"

    return write


def _png(values: NDArray[Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for number, section in enumerate(values):
            (folder / f"s{number}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(section)))
        return folder

    return write


def _virtual(folder: Path) -> Path:
    """One directory, then all pixels: as ImageJ writes beyond 4 GB."""
    tifffile.imwrite(folder / "a.tif", GREY.astype(">u2") * 200, truncate=True, byteorder=">")
    return folder / "a.tif"


def _palette(folder: Path) -> Path:
    return paletted(folder / "a.tif", np.repeat(np.arange(0, 160, 10, dtype=np.uint8)[:, None], 3, 1))


def _holes(compression: int, segment: tuple[int, int], **options: Any) -> Callable[[Path], Path]:
    def content(z: int, index: int) -> NDArray[np.uint8] | None:
        rows = min(segment[0], SHAPE[0] - index * segment[0]) if segment[1] == SHAPE[1] else segment[0]
        return None if index % 3 or z == 1 else RNG.integers(0, 256, (rows, segment[1]), dtype=np.uint8)

    def write(folder: Path) -> Path:
        write_sparse(folder / "a.tif", (2, *SHAPE), segment, content, compression=compression, **options)
        return folder / "a.tif"

    return write


RGB = {"photometric": "rgb"}
IMAGES: dict[str, Callable[[Path], Path]] = {
    "one run of rows": _tiff(GREY),
    "strips apart": _tiff(GREY, rowsperstrip=7),
    "compressed strips": _tiff(GREY, rowsperstrip=7, compression="zlib"),
    "strips with predictor": _tiff(GREY, rowsperstrip=16, compression="lzw", predictor=True),
    "one compressed strip": _tiff(GREY, rowsperstrip=70, compression="zstd"),
    "tiles": _tiff(GREY, tile=(32, 16)),
    "compressed tiles": _tiff(GREY, tile=(16, 48), compression="zstd", bigtiff=True),
    "tiles wider than the section": _tiff(GREY, tile=(128, 128), compression="zlib"),
    "big-endian": _tiff(GREY.astype(np.uint16) * 257, byteorder=">", rowsperstrip=9),
    "big-endian compressed": _tiff(GREY.astype(np.uint16) * 257, byteorder=">", rowsperstrip=9, compression="zlib"),
    "floats with predictor": _tiff(GREY.astype(np.float32) / 3, tile=(32, 32), compression="zlib", predictor=3),
    "signed": _tiff(GREY.astype(np.int16) * 200 - 20000, rowsperstrip=7, compression="packbits"),
    "jpeg tiles": _tiff(GREY, tile=(32, 32), compression="jpeg"),
    "one bit": _tiff(GREY > 100, rowsperstrip=11),
    "one bit in tiles": _tiff(GREY > 100, tile=(16, 16), compression="zlib"),
    "white is zero": _tiff(GREY, photometric="miniswhite", rowsperstrip=7, compression="zlib"),
    "colours": _tiff(ALL_GREY, rowsperstrip=7, **RGB),
    "compressed colours": _tiff(ALL_GREY, tile=(32, 32), compression="zlib", **RGB),
    "colours in planes": _tiff(np.moveaxis(ALL_GREY, -1, 1), planarconfig="separate", rowsperstrip=7, **RGB),
    "colours with alpha": _tiff(WITH_ALPHA, rowsperstrip=7, compression="zlib", extrasamples=["unassalpha"], **RGB),
    "grey with alpha": _tiff(WITH_ALPHA[..., 2:], rowsperstrip=7, extrasamples=["unassalpha"], planarconfig="contig"),
    "palette": _palette,
    "one directory": _virtual,
    "png": _png(GREY),
    "png colours": _png(ALL_GREY),
    "png 16 bit": _png(GREY.astype(np.uint16) * 257),
    "holes": _holes(ZSTD, (8, 90)),
    "holes between plain strips": _holes(NONE, (8, 90)),
    "holes between tiles": _holes(DEFLATE, (16, 32)),
    "a hole of one strip": _holes(NONE, (70, 90)),
    "white holes": _holes(DEFLATE, (16, 32), white_is_zero=True),
}
LABELS: dict[str, Callable[[Path], Path]] = {
    "ids": _tiff(GREY.astype(np.uint64) << 40, tile=(32, 32), compression="zlib"),
    "colour labels": _tiff(COLOURS, rowsperstrip=7, compression="zlib", **RGB),
    "palette labels": _palette,
    "png colour labels": _png(COLOURS),
}
CASES: list[tuple[str, Kind]] = [*((name, "image") for name in IMAGES), *((name, "labels") for name in LABELS)]


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SliceStack]:
    made = {}
    for name, kind in CASES:
        make = (IMAGES if kind == "image" else LABELS)[name]
        made[name] = open_stack(make(tmp_path_factory.mktemp("stack")), kind=kind)
    return made


def _windows(shape: tuple[int, int]) -> st.SearchStrategy[Box]:
    def box(values: tuple[int, int, int, int]) -> Box:
        y, x, height, width = values
        return Box((y, x), (min(y + height, shape[0]), min(x + width, shape[1])))

    sizes = [st.integers(1, n) for n in shape]
    return st.tuples(*(st.integers(0, n - 1) for n in shape), *sizes).map(box)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_window_is_that_part_of_the_section(stacks: dict[str, SliceStack], name: str, kind: Kind) -> None:
    stack = stacks[name]
    whole = [stack.read_section(z) for z in range(stack.shape[0])]

    @settings(max_examples=6)
    @given(_windows((stack.shape[1], stack.shape[2])))
    def check(window: Box) -> None:
        for z, expected in enumerate(whole):
            for open_page in (opened, opened_with_dask):
                with stack.opened(z, open_page) as section:
                    read = section.read(window)
                    assert read.dtype == stack.dtype
                    assert np.array_equal(read, expected[window.slices]), (window, open_page)
                    assert not section.is_zero(window) or not read.any()

    check()


# A hole of one strip it reads as the file's header, and pages without a directory not at all.
READ_OTHERWISE = ("a hole of one strip", "one directory", "png", "png colours", "png 16 bit")


@pytest.mark.parametrize("name", [name for name in IMAGES if name not in READ_OTHERWISE])
def test_what_is_stored_reads_as_tifffile_reads_it(stacks: dict[str, SliceStack], name: str) -> None:
    """By tifffile's whole-page reader, which shares no code with windows."""
    stack = stacks[name]
    for z, page in enumerate(stack.pages):
        assert page is not None
        with opened(page) as windows:
            stored = windows.read(Box.whole(page.shape))
        expected = tifffile.imread(stack.path, key=z)
        expected = np.moveaxis(expected, 0, -1) if "planes" in name else expected
        colours = expected[..., : page.channels] if expected.ndim == 3 else expected
        assert np.array_equal(stored, colours if stored.ndim == colours.ndim else colours[..., 0])


def test_only_the_strips_and_tiles_that_a_window_touches_are_decoded(stacks: dict[str, SliceStack]) -> None:
    window = Box((14, 40), (21, 50))
    expected = {"compressed strips": 1, "strips with predictor": 2, "compressed tiles": 4, "png": 1, "strips apart": 0}
    for name, count in expected.items():
        with stacks[name].opened(0) as section:
            section.read(window)
            assert section.decoded == count, name


def test_holes_are_known_without_decoding_and_read_as_fill(stacks: dict[str, SliceStack]) -> None:
    hole, data = Box((8, 0), (24, 90)), Box((20, 0), (26, 90))
    for name in ("holes", "holes between plain strips"):
        with stacks[name].opened(0) as section:
            assert section.is_zero(hole) and not section.is_zero(data)
            assert not section.read(hole).any() and section.read(data).any()
            assert section.decoded == (1 if name == "holes" else 0)
    with stacks["white holes"].opened(1) as section:
        assert not section.is_zero(hole), "a hole in a file where 0 is white is white"
        assert (section.read(hole) == 255).all() and section.decoded == 0


def test_a_section_without_a_single_byte_is_a_blank_one(stacks: dict[str, SliceStack]) -> None:
    assert not stacks["a hole of one strip"].read_section(1).any()


def test_bands_cover_a_window_once_and_cut_no_strip_twice() -> None:
    for window, segment in ((Box((3, 5), (70, 9)), (8, 90)), (Box((0, 0), (70, 90)), None)):
        cut = list(bands(window, segment, 20))
        assert [row for band in cut for row in range(band.start[0], band.stop[0])] == list(range(window.start[0], 70))
        assert all(band.start[1:] == window.start[1:] and band.stop[1:] == window.stop[1:] for band in cut)
        assert all(band.start[0] % (segment[0] if segment else 1) == 0 for band in cut[1:])


def test_a_strip_that_lost_bytes_since_opening_is_named_where_it_is_read(tmp_path: Path) -> None:
    for compression in ("none", "zlib"):
        path = _tiff(GREY[:1], rowsperstrip=7, compression=compression)(tmp_path)
        stack = open_stack(path, kind="image")
        path.write_bytes(path.read_bytes()[: path.stat().st_size - 3000])
        with (
            stack.opened(0) as section,
            pytest.raises(ValueError, match=r"a.tif: page 0 cannot be decoded .*not in it"),
        ):
            section.read(Box((0, 0), SHAPE))


def test_too_few_strips_are_refused_on_opening(tmp_path: Path) -> None:
    path = IMAGES["compressed strips"](tmp_path)
    with tifffile.TiffFile(path, mode="r+") as tif:
        for name in ("StripOffsets", "StripByteCounts"):
            tag = tif.pages[1].tags[name]
            tag.overwrite(tag.value[:7])
    with pytest.raises(ValueError, match=r"page 1 lists 7 of its 10 strips or tiles: the others would read as black"):
        open_stack(path, kind="image")
