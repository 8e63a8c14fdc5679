"""Sections read through dask: the serial reader, and the oracle of the one that reads strips and tiles itself.

    TIFF page --tifffile's Zarr view--> dask array --window--> pixels as stored

It shares the headers with the other reader, and nothing that finds, reads or places strips and tiles. It knows of no
holes, and reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import zarr

from tessera.geometry.boxes import Box
from tessera.storage.page_windows import Windows, decode_png, opened_directory, told_of, without_alpha
from tessera.storage.pages import PNG_SUFFIXES, Page
from tessera.storage.pixels import Pixels

_PIECE_BYTES = 4 * 2**20


@contextmanager
def opened_with_dask(page: Page) -> Iterator[Windows]:
    """Open a stored section for reading windows of it: as `page_windows.opened`.

    Raises:
      ValueError: the file is gone, truncated or corrupt, or no longer what its header said; names the section.
    """
    with ExitStack() as held:
        with told_of(page):
            windows = _DaskWindows(page, _lazy(page, held))
        yield windows


class _DaskWindows(Windows):
    """A lazy array of a section's pixels, and what of it is asked for."""

    def __init__(self, page: Page, pixels: Any) -> None:
        super().__init__(page)
        self.pixels = pixels

    def is_hole(self, window: Box) -> bool:
        return False

    def _read(self, window: Box) -> Pixels:
        values = np.asarray(self.pixels[window.slices].compute(scheduler="synchronous"))
        return without_alpha(values.astype(values.dtype.newbyteorder("="), copy=False), self.page)


def _lazy(page: Page, held: ExitStack) -> Any:
    """A dask array, (y, x) or (y, x, sample)."""
    import dask
    import dask.array as da

    if page.path.suffix.lower() in PNG_SUFFIXES:
        shape = page.shape if page.channels == 1 else (*page.shape, page.channels)
        return da.from_delayed(dask.delayed(decode_png)(page), shape, dtype=page.dtype)
    if page.raw_offset is not None:
        return _pieces(np.memmap(page.path, page.dtype, "r", page.raw_offset, page.shape), 1)
    stored = held.enter_context(opened_directory(page))
    lazy: Any
    if stored.is_contiguous and all(stored.databytecounts) and stored.predictor == stored.fillorder == 1:
        # Its Zarr view would be one chunk, read whole for any window.
        dtype = stored.dtype.newbyteorder(stored.parent.byteorder)
        lazy, rows = np.memmap(page.path, dtype, "r", stored.dataoffsets[0], stored.shape), 1
    else:
        lazy, rows = zarr.open_array(held.enter_context(stored.aszarr()), mode="r"), stored.chunks[0]
    if stored.axes == "SYX":
        return da.moveaxis(da.from_array(lazy, chunks=(-1, rows, -1)), 0, -1)
    return _pieces(lazy, rows)


def _pieces(array: Any, rows: int) -> Any:
    """The array in pieces of whole strips or rows of tiles, of about 4 MiB."""
    import dask.array as da

    row_bytes = int(np.prod(array.shape[1:])) * array.dtype.itemsize
    step = max(_PIECE_BYTES // max(row_bytes * rows, 1), 1) * rows
    return da.from_array(array, chunks=(step, *array.shape[1:]))
