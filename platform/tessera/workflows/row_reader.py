"""The voxels of shards, decoded a group at a time and handed out one by one."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.storage.page_windows import bands, opened
from tessera.storage.stacks import OpenPage, SliceStack
from tessera.workflows.shard_rows import BAND_BYTES, RowPlan

Voxels = NDArray[Any]


class RowReader:
    """Decodes groups of shards in one worker; safe to ask from several threads.

    `shard_rows` says why. A group is decoded once in a worker: a shard that is asked for again, or of whose group the
    decoding failed, is decoded by itself, so that its own error is told.
    """

    def __init__(self, stack: SliceStack, grid: BlockGrid, plan: RowPlan, open_page: OpenPage = opened) -> None:
        self._stack, self._grid, self._open_page = stack, grid, open_page
        cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        self._decoders, self._plan = max(1, min(plan.decoders, cores)), plan
        self._lock = threading.Lock()
        self._blocks: dict[int, Voxels | None] = {}
        self._earlier: dict[int, Voxels | None] = {}
        self._decoded = 0
        self._seen: set[int] = set()

    def take(self, index: int, group: Sequence[int]) -> tuple[Voxels | None, int]:
        """The voxels of a shard.

        Args:
          index: the shard.
          group: those that are decoded together with it, itself included: the ones that are still to be made.

        Returns:
          The voxels, None where nothing but zeros was ever stored; and how many strips and tiles were decoded for them,
          and for those of the group that were not counted yet.

        Raises:
          ValueError: a section cannot be decoded; names it.
        """
        with self._lock:
            if len(group) > 1:
                self._decode_group(group)
            for blocks in (self._blocks, self._earlier):
                if index in blocks:
                    count, self._decoded = self._decoded, 0
                    return blocks.pop(index), count
        blocks, count = self._decode((index,))
        return blocks[index], count

    def _decode_group(self, group: Sequence[int]) -> None:
        number = self._plan.lane(self._grid, group[0])
        if number in self._seen:
            return
        self._seen.add(number)
        # The last shard of a group and the first of the next are in flight together, and may come in either order. What
        # nobody asked for by then goes before more is decoded.
        self._earlier, self._blocks = self._blocks, {}
        try:
            self._blocks, self._decoded = self._decode(group)
        except ValueError:  # each shard tells for itself whether that section is its own
            self._decoded = 0

    def _decode(self, group: Sequence[int]) -> tuple[dict[int, Voxels | None], int]:
        shards = _Shards({index: self._grid.box(index) for index in group}, self._stack.dtype)

        rows = max(1, BAND_BYTES // (shards.window.shape[1] * self._stack.pixel_bytes))

        def add(z: int) -> int:
            page = self._stack.pages[z]
            with self._stack.opened(z, self._open_page) as section:
                for band in bands(shards.window, page.segment if page else None, rows):
                    if not section.is_zero(band):
                        shards.put(z, band, section.read(band))
                return section.decoded

        with ThreadPoolExecutor(self._decoders) as pool:
            return shards.blocks, sum(pool.map(add, shards.sections))


class _Shards:
    """Shards of one row while their sections arrive; those in which only zeros arrive have no voxels at all."""

    def __init__(self, boxes: dict[int, Box], dtype: np.dtype[Any]) -> None:
        starts, stops = zip(*((box.start, box.stop) for box in boxes.values()), strict=True)
        self.boxes, self.dtype = boxes, dtype
        self.blocks: dict[int, Voxels | None] = dict.fromkeys(boxes)
        self.sections = range(starts[0][0], stops[0][0])
        self.window = Box(min(starts)[1:], max(stops)[1:])
        self._lock = threading.Lock()

    def put(self, z: int, band: Box, voxels: Voxels) -> None:
        """Add a (y, x) band of a section to the shards that it crosses."""
        for index, box in self.boxes.items():
            window = Box(box.start[1:], box.stop[1:])
            part = window.clipped(band)
            values = voxels[part.relative_to(band.start).slices] if part.size else voxels[:0]
            if values.any():
                self._block(index)[z - self.sections.start][part.relative_to(window.start).slices] = values

    def _block(self, index: int) -> Voxels:
        with self._lock:
            block = self.blocks[index]
            if block is None:
                block = self.blocks[index] = _zeros(self.boxes[index].shape, self.dtype)
            return block


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Voxels:
    """Zeros in pages of their own, which the system has back at once.

    The C library keeps what a block of 16 MiB leaves behind for smaller arrays, and a worker grows by 100 MiB.
    """
    pages = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)
