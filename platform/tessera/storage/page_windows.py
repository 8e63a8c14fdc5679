"""Windows of a stored section: only the strips and tiles that a window touches are read, each decoded once per window.

    section 30,000 x 30,000
    +--------------------+
    |  strip 0           |        coded strips or tiles: those that the window touches are decoded whole
    |  strip 1  +-----+  |  <--   plain rows: the bytes of the window are read, nothing else
    |  strip 2  +-----+  |        a hole (a strip or tile without bytes): neither read nor decoded, it is fill
    +--------------------+        PNG: one coded segment, the whole section

What decodes a segment is tifffile, one segment at a time; this file knows where they lie.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from math import ceil
from typing import Any

import imageio.v3 as iio
import numpy as np
import tifffile
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.storage.pages import PNG_SUFFIXES, Page
from tessera.storage.pixels import Pixels

_JPEG = (6, 7, 34892, 33007)


class ChangedError(ValueError):
    """A section is not what its header said when the stack was opened."""


class Windows(ABC):
    """One stored section, open.

    `decoded` counts the strips and tiles decoded so far; a PNG counts as one, plain rows as none.
    """

    def __init__(self, page: Page) -> None:
        self.page, self.decoded = page, 0

    def read(self, window: Box) -> Pixels:
        """The pixels of a (y, x) window as stored, in native byte order; alpha is dropped.

        Returns:
          (y, x), or (y, x, 3) for colours; palette sections give indices.

        Raises:
          ValueError: the file is truncated or corrupt, or has changed; names the section.
        """
        with told_of(self.page):
            return self._read(window)

    @abstractmethod
    def is_hole(self, window: Box) -> bool:
        """Whether nothing of a window was ever stored: all of it reads as fill."""

    @abstractmethod
    def _read(self, window: Box) -> Pixels: ...


@contextmanager
def opened(page: Page) -> Iterator[Windows]:
    """Open a stored section for reading windows of it.

    Raises:
      ValueError: the file is gone, truncated or corrupt, or no longer what its header said; names the section.
    """
    with ExitStack() as held:
        with told_of(page):
            windows = _open(page, held)
        yield windows


def bands(window: Box, segment: tuple[int, int] | None, rows: int) -> Iterator[Box]:
    """Cut a window into bands of about `rows` rows, along which no strip or tile is cut twice.

    >>> [str(band) for band in bands(Box((3, 0), (20, 9)), (8, 9), 10)]
    ['[3:8, 0:9]', '[8:16, 0:9]', '[16:20, 0:9]']
    """
    (top, left), (bottom, right) = window.start, window.stop
    step = max(rows // segment[0], 1) * segment[0] if segment else rows
    edges = [top, *range((top // step + 1) * step, bottom, step), bottom]
    yield from (Box((a, left), (b, right)) for a, b in pairwise(edges))


def _open(page: Page, held: ExitStack) -> Windows:
    if page.path.suffix.lower() in PNG_SUFFIXES:
        return _PngWindows(page)
    if page.raw_offset is not None:
        file = held.enter_context(page.path.open("rb"))
        return _RowWindows(page, file.fileno(), page.dtype, [page.raw_offset], page.shape[0])
    stored = held.enter_context(opened_directory(page))
    return _SegmentWindows(page, stored) if page.segment else _row_windows(page, stored)


@contextmanager
def opened_directory(page: Page) -> Iterator[Any]:
    """Tifffile's view of a TIFF page, its file open.

    Raises:
      ChangedError: its shape is no longer what the header said.
    """
    with tifffile.TiffFile(page.path) as tif:
        # Straight to this directory: walking the chain to section z costs z reads, and a held handle cannot travel.
        tif.filehandle.seek(page.offset)
        stored = tifffile.TiffPage(tif, 0)
        _check_shape(page, (stored.imagelength, stored.imagewidth))
        yield stored


@contextmanager
def told_of(page: Page) -> Iterator[None]:
    """Name the section in whatever its decoder raises."""
    try:
        yield
    except (ChangedError, MemoryError):
        raise
    except Exception as error:  # the decoders raise a dozen unrelated types
        raise ValueError(
            f"{page.path}: {page.name} cannot be decoded ({error}): the file is truncated, corrupt or has changed. "
            "Copy it again, or delete it from its folder to have the section count as missing."
        ) from error


def _check_shape(page: Page, found: tuple[int, int]) -> None:
    if found != page.shape:
        raise ChangedError(f"{page.path}: {page.name} is now {found}, was {page.shape}: it has changed.")


# Plain rows


def _row_windows(page: Page, stored: Any) -> Windows:
    dtype, file = stored.dtype.newbyteorder(stored.parent.byteorder), stored.parent.filehandle.fileno()
    holes = [not (at and count) for at, count in zip(stored.dataoffsets, stored.databytecounts, strict=True)]
    if stored.is_contiguous and not any(holes):
        offsets, rows = [stored.dataoffsets[0]], stored.imagelength
    else:
        offsets = [0 if hole else at for at, hole in zip(stored.dataoffsets, holes, strict=True)]
        rows = min(stored.rowsperstrip, stored.imagelength)
    return _RowWindows(page, file, dtype, offsets, rows, samples=stored.shaped[-1], fill=stored.nodata)


class _RowWindows(Windows):
    """Rows as they lie in the file, in one run or several; an offset of 0 is a hole."""

    def __init__(
        self,
        page: Page,
        file: int,
        dtype: np.dtype[Any],
        offsets: list[int],
        rows: int,
        *,
        samples: int = 1,
        fill: float = 0,
    ) -> None:
        super().__init__(page)
        self.file, self.dtype, self.samples, self.fill = file, dtype, samples, fill
        self.offsets, self.rows = offsets, rows

    def _read(self, window: Box) -> Pixels:
        (top, left), (_, right) = window.start, window.stop
        out = np.empty((*window.shape, self.samples), self.dtype)
        width, pixel = self.page.shape[1], self.samples * self.dtype.itemsize
        for run, first, last in self._runs(window):
            if not self.offsets[run]:
                out[first - top : last - top] = self.fill
                continue
            step = last - first if right - left == width else 1  # whole rows come in one read
            for y in range(first, last, step):
                offset = self.offsets[run] + ((y - run * self.rows) * width + left) * pixel
                _read_into(self.file, out[y - top : y - top + step], offset)
        native = out.astype(self.dtype.newbyteorder("="), copy=False)
        return without_alpha(native[..., 0] if self.samples == 1 else native, self.page)

    def is_hole(self, window: Box) -> bool:
        return not any(self.offsets[run] for run, _, _ in self._runs(window))

    def _runs(self, window: Box) -> Iterator[tuple[int, int, int]]:
        """Runs that a window touches, with its first row and the one past its last in each."""
        top, bottom = window.start[0], window.stop[0]
        for run in range(top // self.rows, ceil(bottom / self.rows)):
            yield run, max(top, run * self.rows), min(bottom, (run + 1) * self.rows)


def _read_into(file: int, rows: NDArray[Any], offset: int) -> None:
    """Fill an array with the bytes at an offset; one read gives at most 2 GiB."""
    left = memoryview(rows.reshape(-1).view(np.uint8).data)
    while left and (got := os.preadv(file, [left], offset)):
        left, offset = left[got:], offset + got
    if left:
        raise ValueError(f"bytes {offset} to {offset + len(left)} are not in it")


# Coded segments


class _SegmentWindows(Windows):
    """Strips or tiles that must be decoded."""

    def __init__(self, page: Page, stored: Any) -> None:
        super().__init__(page)
        self.stored = stored
        self.length, self.width = (int(n) for n in stored.chunks[:2])
        self.down, self.across = ceil(page.shape[0] / self.length), ceil(page.shape[1] / self.width)
        tables = {"jpegtables": stored.jpegtables, "jpegheader": stored.jpegheader}
        self.tables = tables if stored.compression in _JPEG else {}

    def _read(self, window: Box) -> Pixels:
        planes, samples = min(self.stored.shaped[0], self.page.channels), self.stored.shaped[-1]
        out = np.full((planes, *window.shape, samples), self.stored.nodata, self.stored.dtype)
        # In the order of the file, which its disk reads fastest.
        for index in sorted(self._indices(window, planes), key=self.stored.dataoffsets.__getitem__):
            data = self._bytes(index)
            if data is not None:
                _place(self.stored.decode(data, index, **self.tables, _fullsize=False), window, out)
                self.decoded += 1
        pixels = np.moveaxis(out[..., 0], 0, -1) if planes > 1 else out[0] if samples > 1 else out[0, ..., 0]
        return without_alpha(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), self.page)

    def is_hole(self, window: Box) -> bool:
        return not any(self._span(index) for index in self._indices(window, self.stored.shaped[0]))

    def _indices(self, window: Box, planes: int) -> list[int]:
        """Numbers of the segments that a window touches."""
        (top, left), (bottom, right) = window.start, window.stop
        rows = range(top // self.length, ceil(bottom / self.length))
        columns = range(left // self.width, ceil(right / self.width))
        return [(p * self.down + r) * self.across + c for p in range(planes) for r in rows for c in columns]

    def _bytes(self, index: int) -> bytes | None:
        """A segment as it lies in the file; None for a hole."""
        span = self._span(index)
        if span is None:
            return None
        offset, count = span
        data = os.pread(self.stored.parent.filehandle.fileno(), count, offset)
        if len(data) != count:
            raise ValueError(f"strip or tile {index} needs bytes {offset} to {offset + count}, which are not in it")
        return data

    def _span(self, index: int) -> tuple[int, int] | None:
        """Offset and number of a segment's bytes; None for a hole."""
        span = self.stored.dataoffsets[index], self.stored.databytecounts[index]
        return span if all(span) else None


def _place(decoded: Any, window: Box, out: NDArray[Any]) -> None:
    """Copy what a decoded segment has of a window; `out` is (plane, y, x, sample)."""
    segment, (plane, _, top, left, _), shape = decoded
    found = Box((top, left), (top + shape[1], left + shape[2])).clipped(window)
    if found.size:
        out[plane][found.relative_to(window.start).slices] = segment[0][found.relative_to((top, left)).slices]


# PNG


class _PngWindows(Windows):
    """A section that can be decoded whole only; it is when it is first asked for."""

    def _read(self, window: Box) -> Pixels:
        if not self.decoded:
            self.pixels, self.decoded = decode_png(self.page), 1
            _check_shape(self.page, self.pixels.shape[:2])
        return self.pixels[window.slices]

    def is_hole(self, window: Box) -> bool:
        return False


def decode_png(page: Page) -> Pixels:
    """A PNG's pixels as stored: (y, x), or (y, x, 3) for colours; palette sections give indices."""
    if page.palette is not None:
        return np.asarray(iio.imread(page.path, plugin="pillow", mode="P"))
    # Pillow would cut 16-bit colours to 8 bits; this decoder keeps them.
    from imagecodecs import png_decode

    values = without_alpha(np.asarray(png_decode(page.path.read_bytes())), page)
    if page.dtype.kind == "b":
        return values > 0
    # 2- and 4-bit greys arrive stretched to 0..255: an id of 1 would read 17.
    return values // np.uint8(255 // ((1 << page.bits) - 1)) if page.bits < 8 else values


def without_alpha(values: Pixels, page: Page) -> Pixels:
    """Grey (y, x) or colours (y, x, 3) of pixels that may have further samples."""
    if values.ndim == 2:
        return values
    return np.asarray(values[..., 0] if page.channels == 1 else values[..., :3])
