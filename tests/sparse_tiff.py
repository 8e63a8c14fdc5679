"""BigTIFF stacks with holes, as GDAL's SPARSE_OK leaves them: a strip or tile that nobody wrote has no bytes.

Written here byte by byte: no library at hand writes holes, and a reader is best tested on files that it did not write.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

Strip = NDArray[np.uint8]
NONE, DEFLATE, ZSTD = 1, 8, 50000
_ENCODE: dict[int, Callable[[bytes], bytes]] = {
    NONE: bytes,
    DEFLATE: zlib.compress,
    ZSTD: lambda raw: imagecodecs.zstd_encode(raw, 1),
}
_SHORT, _LONG8 = 3, 16


def write_sparse(
    path: Path,
    shape: tuple[int, int, int],
    segment: tuple[int, int],
    content: Callable[[int, int], Strip | None],
    *,
    compression: int = ZSTD,
    white_is_zero: bool = False,
) -> int:
    """Write a uint8 stack; returns the number of strips or tiles that hold data.

    Args:
      path: of the file.
      shape: z, y, x.
      segment: rows and columns of a strip (as wide as the section) or of a tile (multiples of 16).
      content: gives the voxels of segment number `index` of section z, of `segment`'s shape, or None for a hole. A
        strip at the lower edge is as long as there are rows.
      compression: of the segments.
      white_is_zero: store photometric 0 instead of 1.
    """
    stored = 0
    with path.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        link = 8  # where the offset of the next directory is to be written
        for z in range(shape[0]):
            places = []
            for index in range(_count(shape, segment)):
                voxels = content(z, index)
                encoded = b"" if voxels is None else _ENCODE[compression](np.ascontiguousarray(voxels).tobytes())
                places.append((file.tell() if encoded else 0, len(encoded)))
                file.write(encoded)
                stored += bool(encoded)
            link = _write_directory(file, link, shape, segment, places, compression, 0 if white_is_zero else 1)
    return stored


def _count(shape: Sequence[int], segment: tuple[int, int]) -> int:
    return ceil(shape[1] / segment[0]) * ceil(shape[2] / segment[1])


def _write_directory(file, link, shape, segment, places, compression, photometric) -> int:
    """One page's tags; returns where the link to the next one goes."""
    arrays = []
    for column in zip(*places, strict=True):
        arrays.append(file.tell())
        file.write(struct.pack(f"<{len(column)}Q", *column))
    tiled = segment[1] != shape[2]
    tags = [(256, [shape[2]]), (257, [shape[1]]), (258, [8]), (259, [compression]), (262, [photometric]), (277, [1])]
    tags += [(322, [segment[1]]), (323, [segment[0]])] if tiled else [(278, [segment[0]])]
    offsets, counts = (324, 325) if tiled else (273, 279)
    directory = file.tell()
    entries = [struct.pack("<HHQQ", tag, _LONG8, 1, *value) for tag, value in tags]
    for tag, array, column in zip((offsets, counts), arrays, zip(*places, strict=True), strict=True):
        entries.append(struct.pack("<HHQQ", tag, _LONG8, len(places), array if len(places) > 1 else column[0]))
    file.write(struct.pack("<Q", len(entries)) + b"".join(sorted(entries, key=lambda e: struct.unpack("<H", e[:2]))))
    following = file.tell()
    file.write(struct.pack("<Q", 0))
    file.seek(link)
    file.write(struct.pack("<Q", directory))
    file.seek(0, 2)
    return following
