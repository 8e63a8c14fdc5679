"""Promises about stacks of slices: what is read equals what was written, and what is ambiguous is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from slices import COLOURS, STACK, paletted, whole, write_folder

from tessera.storage.page_windows import Windows
from tessera.storage.stacks import open_stack
from volumes import isbi_dir


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True, "tile": (16, 16), "compression": "zstd"},
        {"byteorder": ">", "rowsperstrip": 7},
        {"truncate": True, "byteorder": ">"},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
    ],
    ids=["plain", "bigtiff-tiled", "big-endian", "one-directory", "imagej"],
)
def test_a_multi_page_tiff_reads_back_section_by_section(tmp_path: Path, dtype: str, options: dict) -> None:
    stored = STACK.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    stack = open_stack(tmp_path / "a.tif", kind="image")
    assert (stack.shape, stack.dtype, stack.missing) == ((5, 40, 60), np.dtype(dtype), ())
    assert stack.read_section(3).dtype == np.dtype(dtype)
    assert np.array_equal(stack.read_section(3), stored[3])
    assert np.array_equal(whole(stack), stored)


def test_signed_values_stay_signed(tmp_path: Path) -> None:
    stored = STACK.astype(np.int16) - 100
    tifffile.imwrite(tmp_path / "a.tif", stored)
    stack = open_stack(tmp_path / "a.tif", kind="image")
    assert stack.dtype == np.int16 and np.array_equal(whole(stack), stored)


def test_pages_appended_one_by_one_are_one_stack(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for section in STACK:
            writer.write(section, contiguous=False)
    assert np.array_equal(whole(open_stack(tmp_path / "a.tif", kind="image")), STACK)


@pytest.mark.parametrize(("suffix", "dtype"), [("tif", "uint8"), ("png", "uint8"), ("png", "uint16")])
def test_a_folder_reads_in_the_order_of_its_numbers(tmp_path: Path, suffix: str, dtype: str) -> None:
    stored = STACK.astype(dtype) * (257 if dtype == "uint16" else 1)
    stack = open_stack(write_folder(tmp_path / "f", stored, suffix), kind="image")
    assert stack.names[0] == f"s8.{suffix}" and stack.names[2] == f"s10.{suffix}"
    assert stack.dtype == stored.dtype
    assert np.array_equal(whole(stack), stored)


def test_a_gap_in_the_numbering_is_a_missing_section_of_zeros(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", STACK)
    (folder / "s10.tif").unlink()
    stack = open_stack(folder, kind="image")
    assert (stack.missing, stack.names[2], stack.shape) == ((2,), "(missing)", (5, 40, 60))
    assert stack.read_section(2).dtype == np.uint8 and not stack.read_section(2).any()
    assert np.array_equal(stack.read_section(3), STACK[3])


def test_files_that_are_no_slices_are_named_and_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", STACK)
    (folder / "notes.txt").write_text("z 50 nm")
    (folder / ".DS_Store").write_bytes(b"x")
    stack = open_stack(folder, kind="image")
    assert stack.ignored == ("notes.txt",) and stack.shape[0] == 5


def test_a_stack_travels_to_another_process(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK)
    stack = pickle.dumps(open_stack(tmp_path / "a.tif", kind="image"))
    code = "import pickle, sys; s = pickle.load(sys.stdin.buffer); print(int(s.read_section(4).sum()))"
    done = subprocess.run([sys.executable, "-c", code], input=stack, capture_output=True, check=True)
    assert int(done.stdout) == int(STACK[4].sum())
    assert len(stack) < 3000


def test_opening_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, compression="zlib")
    monkeypatch.setattr(Windows, "read", lambda *_: pytest.fail("decoded"))
    assert open_stack(tmp_path / "a.tif", kind="image").shape == STACK.shape


# What is refused


def _size_mismatch(folder: Path) -> Path:
    write_folder(folder, STACK)
    tifffile.imwrite(folder / "s11.tif", STACK[0, :, :50])
    return folder


def _dtype_mismatch(folder: Path) -> Path:
    write_folder(folder, STACK)
    tifffile.imwrite(folder / "s9.tif", STACK[0].astype(np.uint16))
    return folder


def _mixed_colour(folder: Path) -> Path:
    write_folder(folder, STACK, "png")
    (folder / "s9.png").write_bytes(imagecodecs.png_encode(np.stack([STACK[0]] * 3, -1)))
    return folder


def _mixed_palettes(folder: Path) -> Path:
    folder.mkdir()
    table = np.random.default_rng(3).integers(0, 255, (16, 3), dtype=np.uint8)
    paletted(folder / "s1.png", table)
    paletted(folder / "s2.png", table[::-1])
    return folder


def _multi_page_slice(folder: Path) -> Path:
    write_folder(folder, STACK)
    tifffile.imwrite(folder / "s9.tif", STACK[:2])
    return folder


def _empty_slice(folder: Path) -> Path:
    write_folder(folder, STACK)
    (folder / "s9.tif").write_bytes(b"")
    return folder


def _truncated(path: Path) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for section in STACK:
            writer.write(section, contiguous=False)
    with tifffile.TiffFile(path) as tif:
        third = list(tif.pages)[3].offset
    path.write_bytes(path.read_bytes()[:third])  # ends between two pages: the reader alone returns fewer sections
    return path


def _tiff(array: NDArray[np.generic], **options: object) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        tifffile.imwrite(path, array, **options)
        return path

    return write


def _bytes(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


def _folder(*names: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        for name in names:
            (folder / name).write_text("x")
        return folder

    return write


TWICE = np.stack([STACK, STACK], 1)
REFUSED = {
    "missing path": ("a.tif", lambda path: path, FileNotFoundError, "does not exist: give a multi-page TIFF"),
    "empty folder": ("f", _folder(), ValueError, "is empty: no section to read"),
    "folder of others": ("f", _folder("a.jpg", "b.txt"), ValueError, "holds a.jpg, b.txt: no section"),
    "zarr folder": ("f", _folder("zarr.json"), ValueError, "is a Zarr volume already"),
    "other suffix": ("a.jpg", _bytes(b"x"), ValueError, "neither TIFF nor PNG"),
    "empty tiff": ("a.tif", _bytes(b""), ValueError, "not a readable TIFF"),
    "zero pages": ("a.tif", _bytes(b"II*\0\0\0\0\0"), ValueError, "not a readable TIFF|without pages"),
    "text in a tiff": ("a.tif", _bytes(b"hello, world"), ValueError, "not a readable TIFF"),
    "text in a png": ("a.png", _bytes(b"hello, world"), ValueError, "not a readable PNG .no PNG signature"),
    "cut png": ("a.png", _bytes(b"\x89PNG\r\n\x1a\n\0\0"), ValueError, "not a readable PNG"),
    "truncated between pages": ("a.tif", _truncated, ValueError, "the file is truncated, and its last sections"),
    "empty slice": ("f", _empty_slice, ValueError, "s9.tif: not a readable TIFF"),
    "sizes differ": ("f", _size_mismatch, ValueError, "differ in size. 4 of 5 have 40x60 px, but 40x50 px: s11.tif"),
    "dtypes differ": ("f", _dtype_mismatch, ValueError, "differ in dtype. 4 of 5 have uint8, but uint16: s9.tif"),
    "multi-page slice": ("f", _multi_page_slice, ValueError, "s9.tif holds 2 pages: .* each file is one section"),
    "channels": (
        "a.tif",
        _tiff(TWICE, imagej=True, metadata={"axes": "ZCYX"}),
        ValueError,
        "hyperstack with axes ZCYX",
    ),
    "ome channels": ("a.ome.tif", _tiff(TWICE, metadata={"axes": "ZCYX"}), ValueError, "hyperstack with axes ZCYX"),
    "four axes": ("a.tif", _tiff(TWICE), ValueError, "Save one channel as a plain stack"),
    "only channels": ("a.tif", _tiff(STACK, imagej=True, metadata={"axes": "CYX"}), ValueError, "axes CYX"),
    "volumetric": ("a.tif", _tiff(np.zeros((16, 32, 32), "u1"), volumetric=True, tile=(16, 16, 16)), ValueError, "ZYX"),
    "two samples": (
        "a.tif",
        _tiff(np.stack([STACK] * 2, -1), photometric="minisblack", planarconfig="contig"),
        ValueError,
        "holds 2 channels",
    ),
    "complex": ("a.tif", _tiff(STACK.astype("complex64")), ValueError, "complex64 is not supported for image"),
    "float64": ("a.tif", _tiff(STACK.astype("float64")), ValueError, "float64 is not supported.*Convert it to float32"),
    "uint32 image": ("a.tif", _tiff(STACK.astype("uint32")), ValueError, "uint32 is not supported for image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_stack_that_is_not_sections_along_z_is_refused_on_opening(tmp_path: Path, case: str) -> None:
    name, make, error, message = REFUSED[case]
    path = make(tmp_path / name)
    with pytest.raises(error, match=message):
        open_stack(path, kind="image")


@pytest.mark.parametrize("contiguous", [True, False])
def test_a_tiff_cut_anywhere_never_reads_as_a_shorter_stack(tmp_path: Path, contiguous: bool) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for section in STACK:
            writer.write(section, contiguous=contiguous)
    data = (tmp_path / "a.tif").read_bytes()
    refused = 0
    for size in np.linspace(0, len(data) - 1, 60).astype(int):
        (tmp_path / "cut.tif").write_bytes(data[:size])
        try:
            read = whole(open_stack(tmp_path / "cut.tif", kind="image"))
        except ValueError as error:
            assert "truncated" in str(error)
            refused += 1
        else:
            assert np.array_equal(read, STACK)  # only a trailing comment was lost
    assert refused >= 59


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (_mixed_colour, "f", "differ in colour model. 4 of 5 have grey, but colour: s9.png"),
        (_mixed_palettes, "f", "differ in palette"),
        (_tiff(STACK.astype("float32")), "a.tif", "float32 is not supported for labels.*uint32"),
        (_tiff(COLOURS.astype("uint16"), photometric="rgb"), "a.tif", "more than 8 bits do not fit an id"),
    ],
)
def test_labels_whose_ids_would_change_are_refused_on_opening(
    tmp_path: Path, make: Callable[[Path], Path], name: str, message: str
) -> None:
    path = make(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        open_stack(path, kind="labels")


def test_a_corrupt_section_is_named_where_it_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", STACK, "png")
    good = (folder / "s9.png").read_bytes()
    (folder / "s9.png").write_bytes(good[: len(good) // 2])
    stack = open_stack(folder, kind="image")
    with pytest.raises(ValueError, match=r"s9.png cannot be decoded.*truncated, corrupt"):
        stack.read_section(1)


def test_a_section_that_changed_since_opening_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", STACK)
    stack = open_stack(folder, kind="image")
    tifffile.imwrite(folder / "s9.tif", STACK[0, :9])
    with pytest.raises(ValueError, match=r"s9.tif.*has changed"):
        stack.read_section(1)


@pytest.mark.parametrize("z", [-1, 5])
def test_there_is_no_section_outside_the_stack(tmp_path: Path, z: int) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK)
    with pytest.raises(IndexError, match="there are sections 0 to 4"):
        open_stack(tmp_path / "a.tif", kind="image").read_section(z)


def test_isbi_stacks_read_as_their_reader_reads_them() -> None:
    folder = isbi_dir()
    if folder is None:
        pytest.skip("ISBI 2012 is absent: set TESSERA_ISBI_DIR")
    for name, kind in (("train-volume.tif", "image"), ("train-labels.tif", "labels")):
        stack = open_stack(folder / name, kind=kind)
        assert (stack.shape, stack.dtype) == ((30, 512, 512), np.uint8)
        assert np.array_equal(stack.read_section(17), tifffile.imread(folder / name, key=17))
