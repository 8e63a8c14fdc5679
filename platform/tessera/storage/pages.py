"""The header of one stored section.

A header says where a section lies and how its numbers are to be read, without decoding: a terabyte stack is checked in
full before anything runs. It holds paths and offsets only, so it travels to other processes and reopens there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8")
PNG_SUFFIXES = (".png",)


@dataclass(frozen=True, slots=True)
class Page:
    """One stored section: its place, its shape and the meaning of its numbers; no pixels.

    `dtype` is as stored. `channels` is 1 or 3, alpha not counted. `bits` are those of one sample. `palette` holds the
    red, green and blue bytes of an indexed section's colours. `segment` is how many rows and columns are decoded
    together, a strip, a tile or a whole PNG; None where rows lie as they are, and any window is read directly. `offset`
    is that of the TIFF directory; `raw_offset`, of pixels that have no directory of their own (ImageJ beyond 4 GB).
    """

    path: Path
    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    channels: int = 1
    bits: int = 8
    inverted: bool = False
    palette: bytes | None = None
    segment: tuple[int, int] | None = None
    offset: int = 0
    raw_offset: int | None = None

    @property
    def colours(self) -> NDArray[np.uint8]:
        """The palette as uint8, (n, 3); of length 0 where there is none."""
        return np.frombuffer(self.palette or b"", np.uint8).reshape(-1, 3)


def read_pages(path: Path) -> tuple[Page, ...]:
    """The headers of every section in one TIFF or PNG file; nothing is decoded.

    Raises:
      ValueError: the file is unreadable, truncated, or its pages are not sections along one axis.
    """
    if path.suffix.lower() in PNG_SUFFIXES:
        return (_png_page(path),)
    try:
        with tifffile.TiffFile(path) as tif:
            return _tiff_pages(tif, path)
    except (tifffile.TiffFileError, struct.error, LookupError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"{path}: not a readable TIFF ({error}): the file is empty, truncated or corrupt. Copy it again."
        ) from error


# TIFF


def _tiff_pages(tif: Any, path: Path) -> tuple[Page, ...]:
    pages = tuple(_tiff_page(page, path) for page in tif.pages)
    if not pages:
        raise ValueError(f"{path}: a TIFF without pages holds no section. Write it again.")
    _check_chain_ends(tif, pages[-1].offset, len(pages), path)
    _check_one_leading_axis(tif, path)
    declared = _declared_sections(tif)
    return pages if declared <= len(pages) else tuple(_virtual_pages(tif, pages, declared))


def _tiff_page(page: Any, path: Path) -> Page:
    name = f"page {page.index}"
    if page.axes not in ("YX", "YXS", "SYX") or page.dtype is None or 0 in page.shape:
        raise ValueError(
            f"{path}: {name} has axes {page.axes or 'unknown'} and shape {page.shape}: a section has y and x, and "
            "colours at most. Write one plain 2D page per section."
        )
    _check_data_present(page, path)
    palette = _tiff_palette(page) if page.photometric == tifffile.PHOTOMETRIC.PALETTE else None
    return Page(
        path=path,
        name=name,
        shape=(page.imagelength, page.imagewidth),
        dtype=np.dtype(page.dtype).newbyteorder("="),
        channels=_tiff_channels(page, path),
        bits=page.bitspersample,
        inverted=_tiff_inverted(page),
        palette=palette,
        segment=None if _is_plain(page) else _tiff_segment(page),
        offset=page.offset,
    )


def _tiff_inverted(page: Any) -> bool:
    """Whether 0 is stored for white.

    tifffile labels every bool array MINISWHITE by default, without a thought of white: there True stays bright.
    """
    by_default = page.bitspersample == 1 and page.parent.pages.first.software.startswith("tifffile")
    return bool(page.photometric == tifffile.PHOTOMETRIC.MINISWHITE) and not by_default


def _tiff_channels(page: Any, path: Path) -> int:
    """1 for grey and 3 for colours; extra samples are dropped only where the file calls them alpha."""
    colours = int(page.samplesperpixel) - len(page.extrasamples)
    photometrics = {1: ("MINISBLACK", "MINISWHITE", "PALETTE"), 3: ("RGB", "YCBCR")}
    alpha_only = all(int(extra) in (1, 2) for extra in page.extrasamples)
    if getattr(page.photometric, "name", "") not in photometrics.get(colours, ()) or not alpha_only:
        raise ValueError(
            f"{path}: page {page.index} holds {page.samplesperpixel} channels with photometric "
            f"{getattr(page.photometric, 'name', page.photometric)}: a section is grey, RGB(A) or indexed. Convert it "
            "to grey (8 or 16 bit) first."
        )
    return colours


def _tiff_palette(page: Any) -> bytes:
    """Colours as 8-bit red, green, blue; some old writers stored 8-bit values in TIFF's 16-bit table."""
    table = np.asarray(page.colormap)
    return bytes((table >> 8 if table.max() > 255 else table).astype(np.uint8).T.tobytes())


def _tiff_segment(page: Any) -> tuple[int, int]:
    rows, columns = page.chunks[:2]
    return min(int(rows), page.imagelength), min(int(columns), page.imagewidth)


def _is_plain(page: Any) -> bool:
    """Whether rows lie in the file as they are in memory, so that any window is read without decoding."""
    plain = (
        page.compression == 1
        and page.predictor == 1
        and page.fillorder == 1
        and page.bitspersample == 8 * page.dtype.itemsize
        and page.shaped[0] == 1  # samples of a pixel lie together
        and not page.is_subsampled
    )
    if not plain or (page.is_contiguous and all(page.databytecounts)):
        return bool(plain)
    rows, row_bytes = _tiff_segment(page)[0], page.imagewidth * page.shaped[-1] * page.dtype.itemsize
    strips = [row_bytes * min(rows, page.imagelength - y) for y in range(0, page.imagelength, rows)]
    if page.is_tiled or len(page.databytecounts) != len(strips):
        return False
    return all(count in (0, whole) for count, whole in zip(page.databytecounts, strips, strict=True))


def _check_data_present(page: Any, path: Path) -> None:
    """A strip or tile of no bytes is a hole, as GDAL leaves where nothing was written; it reads as fill."""
    size, segments = page.parent.filehandle.size, list(zip(page.dataoffsets, page.databytecounts, strict=False))
    end = max((offset + count for offset, count in segments if count), default=0)
    if end > size or not segments:
        raise ValueError(
            f"{path}: page {page.index} needs {end} bytes but the file has {size}: it is truncated, and its last "
            "sections would be lost. Copy it again."
        )
    if not page.is_contiguous and len(segments) < prod(page.chunked):
        raise ValueError(
            f"{path}: page {page.index} lists {len(segments)} of its {prod(page.chunked)} strips or tiles: the others "
            "would read as black. Write the file again."
        )


def _check_chain_ends(tif: Any, offset: int, count: int, path: Path) -> None:
    """A truncated file's directories break off, and the reader returns fewer pages with no more than a log line."""
    layout, handle = tif.tiff, tif.filehandle
    handle.seek(offset)
    (tags,) = struct.unpack(layout.tagnoformat, handle.read(layout.tagnosize))
    handle.seek(offset + layout.tagnosize + tags * layout.tagsize)
    (following,) = struct.unpack(layout.offsetformat, handle.read(layout.offsetsize))
    if following:
        raise ValueError(
            f"{path}: after page {count - 1} the next page is said to lie at byte {following} of {handle.size}: the "
            "file is truncated, and its last sections would be lost. Copy it again."
        )


def _check_one_leading_axis(tif: Any, path: Path) -> None:
    for series in tif.series:
        leading = [a for a, n in zip(series.axes, series.shape, strict=True) if a not in "YXS" and n > 1]
        if len(leading) > 1 or "C" in leading:
            raise ValueError(
                f"{path}: a hyperstack with axes {series.axes} and shape {tuple(series.shape)}: pages of several "
                "channels or times would be taken for sections. Save one channel as a plain stack whose pages are z "
                "(ImageJ: Image > Color > Split Channels, or Image > Properties to set slices)."
            )


def _declared_sections(tif: Any) -> int:
    """How many sections ImageJ's or tifffile's own description promises; 0 where neither wrote the file."""
    first = tif.series[0]
    if first.kind not in ("imagej", "shaped") or len(tif.series) > 1:
        return 0
    return int(np.prod([n for a, n in zip(first.axes, first.shape, strict=True) if a not in "YXS"], dtype=np.int64))


def _virtual_pages(tif: Any, pages: tuple[Page, ...], count: int) -> Iterator[Page]:
    """Sections without directories of their own: beyond 4 GB ImageJ writes one directory and then all the pixels."""
    first, start = pages[0], tif.series[0].dataoffset
    nbytes = first.shape[0] * first.shape[1] * first.dtype.itemsize
    plain = first.channels == 1 and first.bits == 8 * first.dtype.itemsize and start is not None and len(pages) == 1
    if not plain or start + count * nbytes > tif.filehandle.size:
        raise ValueError(
            f"{first.path}: its description promises {count} sections but it has {len(pages)} pages and "
            f"{tif.filehandle.size} bytes: it is truncated, and its last sections would be lost. Copy it again."
        )
    stored = first.dtype.newbyteorder(tif.byteorder)
    for z in range(count):
        yield replace(first, name=f"page {z}", dtype=stored, raw_offset=start + z * nbytes)


# PNG

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 1, 6: 3}


def _png_page(path: Path) -> Page:
    try:
        width, height, bits, colour, palette = _png_header(path)
    except (struct.error, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: not a readable PNG ({error}): the file is empty, truncated or corrupt. Copy it again."
        ) from error
    dtype = np.dtype(np.uint16 if bits == 16 else np.bool_ if (bits, colour) == (1, 0) else np.uint8)
    channels = _PNG_CHANNELS[colour]
    colours, shape = palette if colour == 3 else None, (height, width)
    return Page(path, path.name, shape, dtype, channels, bits, palette=colours, segment=shape)


def _png_header(path: Path) -> tuple[int, int, int, int, bytes]:
    """Width, height, bit depth, colour type and palette. Source: PNG specification, sections 5.3, 11.2.1, 11.2.2."""
    palette = b""
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            raise ValueError("no PNG signature")
        length, tag = struct.unpack(">I4s", file.read(8))
        width, height, bits, colour = struct.unpack(">IIBB", file.read(10))
        file.seek(length - 10 + 4, 1)
        while tag not in (b"IDAT", b"PLTE"):
            length, tag = struct.unpack(">I4s", file.read(8))
            palette = file.read(length) if tag == b"PLTE" else palette
            file.seek(length + 4 if tag != b"PLTE" else 4, 1)
    if 0 in (width, height) or colour not in _PNG_CHANNELS or (colour == 3 and not palette):
        raise ValueError("impossible header")
    return width, height, bits, colour, palette
