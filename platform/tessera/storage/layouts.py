"""Chunk and shard shapes: what one reader fetches and what one writer owns.

A partial write to a shard is an unlocked read-modify-write of all of it: two tasks in one shard lose data without a
word. So shards are whole numbers of chunks, blocks whole numbers of shards, and every write is checked against that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from tessera.geometry.boxes import Box

DEFAULT_CHUNK = (16, 256, 256)
DEFAULT_SHARD = (64, 1024, 1024)
# Fewer shards than this leave workers idle and make every task a large part of the job.
_MIN_SHARDS = 8
# A shard is assembled in memory before it is written: uint64 labels get smaller ones than uint8 probabilities.
_MAX_SHARD_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Layout:
    """Chunk and shard shape of an array, in voxels; each shard is a whole number of chunks.

    >>> Layout((16, 256, 256), (64, 1024, 1024)).shards((100, 2000, 1024))
    4
    """

    chunk: tuple[int, ...]
    shard: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.chunk) != len(self.shard) or min(*self.chunk, *self.shard, 1) < 1:
            raise ValueError(
                f"chunk {self.chunk} and shard {self.shard} need as many positive extents as the volume has axes, for "
                f"example chunk {DEFAULT_CHUNK} and shard {DEFAULT_SHARD}."
            )
        if any(s % c for s, c in zip(self.shard, self.chunk, strict=True)):
            legal = tuple(ceil(s / c) * c for s, c in zip(self.shard, self.chunk, strict=True))
            raise ValueError(
                f"shard {self.shard} is not a multiple of chunk {self.chunk}: chunks would straddle two shards. "
                f"Try shard {legal}."
            )

    def shards(self, shape: Sequence[int]) -> int:
        """Number of shards that cover an array of this shape."""
        return prod(ceil(n / s) for n, s in zip(shape, self.shard, strict=True))

    def is_aligned(self, box: Box, shape: Sequence[int]) -> bool:
        """Whether a non-empty box is whole shards of an array of this shape, cut only by its far edge."""
        inside = Box.whole(shape).contains(box) and box.size > 0
        return inside and self.aligned(box, shape) == box

    def aligned(self, box: Box, shape: Sequence[int]) -> Box:
        """The smallest box of whole shards around `box`, clipped at the array's edges.

        >>> Layout((2,), (4,)).aligned(Box((5,), (7,)), (10,))
        Box(start=(4,), stop=(8,))
        """
        start = tuple(max(a, 0) // s * s for a, s in zip(box.start, self.shard, strict=True))
        stop = (min(ceil(b / s) * s, n) for b, s, n in zip(box.stop, self.shard, shape, strict=True))
        return Box(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))


def legal_layout(
    shape: Sequence[int],
    itemsize: int = 1,
    chunk: Sequence[int] | None = None,
    shard: Sequence[int] | None = None,
    *,
    sharded: bool = True,
) -> Layout:
    """Chunk and shard for an array, from what is given and defaults for the rest.

    Defaults are chunk 16x256x256 and shard 64x1024x1024, clipped to the volume. A shard that was not given is halved,
    y and x together and then z, while it exceeds 128 MiB or fewer than 8 shards cover the volume. A channel
    axis gets 1 in both.

    Args:
      shape: (z, y, x) or (c, z, y, x), voxels.
      itemsize: bytes per voxel.
      chunk: one extent per axis.
      shard: one extent per axis, a multiple of the chunk.
      sharded: whether the format knows shards; else every chunk is an object, and what one write owns.

    Raises:
      ValueError: the shape is empty or has other axes, or the given extents do not fit.

    >>> legal_layout((30, 512, 512))
    Layout(chunk=(16, 256, 256), shard=(16, 256, 256))
    >>> legal_layout((1000, 10000, 10000))
    Layout(chunk=(16, 256, 256), shard=(64, 1024, 1024))
    """
    extents = _checked_shape(shape)
    given_chunk, given_shard = _checked(chunk, extents, "chunk"), _checked(shard, extents, "shard")
    chosen = given_chunk or _default_chunk(extents, given_shard if sharded else None)
    if not sharded:
        if given_shard not in (None, chosen):
            raise ValueError(
                f"shard={list(given_shard or ())} for OME-Zarr 0.4, which has no shards: each chunk, here {chosen}, is "
                "a file. Leave the shard out, or write OME-Zarr 0.5."
            )
        return Layout(chosen, chosen)
    if given_shard:
        return Layout(chosen, given_shard)
    layout = Layout(chosen, _default_shard(extents, chosen))
    return _shrunk(layout, extents, itemsize)


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    extents = tuple(int(n) for n in shape)
    if len(extents) not in (3, 4) or min(extents) < 1:
        raise ValueError(
            f"shape {extents}: a volume has axes z, y, x or c, z, y, x, each at least 1 voxel long, for example "
            "(30, 512, 512). A single section is (1, y, x)."
        )
    return extents


def _checked(given: Sequence[int] | None, extents: tuple[int, ...], noun: str) -> tuple[int, ...] | None:
    """Given extents as integers; one for z, y, x serves each channel of a volume with c."""
    if given is None:
        return None
    if any(int(n) != n or n < 1 for n in given) or len(given) not in (3, len(extents)):
        raise ValueError(
            f"{noun}={list(given)} for a volume of shape {list(extents)}: give one positive integer per axis, for "
            f"example {list(DEFAULT_CHUNK if noun == 'chunk' else DEFAULT_SHARD)}."
        )
    return (1,) * (len(extents) - len(given)) + tuple(int(n) for n in given)


def _per_axis(default: tuple[int, int, int], extents: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (len(extents) - 3) + default


def _default_chunk(extents: tuple[int, ...], shard: tuple[int, ...] | None) -> tuple[int, ...]:
    default = _per_axis(DEFAULT_CHUNK, extents)
    if shard is None:
        return tuple(min(c, n) for c, n in zip(default, extents, strict=True))
    return tuple(_largest_divisor(s, c) for s, c in zip(shard, default, strict=True))


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)


def _default_shard(extents: tuple[int, ...], chunk: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks times a power of two, so that halves stay whole: enough for the volume, at most the default."""
    limits = _per_axis(DEFAULT_SHARD, extents)
    return tuple(c * _power_of_two(n / c, limit // c) for c, n, limit in zip(chunk, extents, limits, strict=True))


def _power_of_two(wanted: float, limit: int) -> int:
    """The smallest power of two that is at least `wanted`, or the largest that is at most `limit`; at least 1."""
    count = 1
    while count < wanted and 2 * count <= limit:
        count *= 2
    return count


def _shrunk(layout: Layout, extents: tuple[int, ...], itemsize: int) -> Layout:
    while layout.shards(extents) < _MIN_SHARDS or prod(layout.shard) * itemsize > _MAX_SHARD_BYTES:
        smaller = _halved(layout)
        if smaller is None:
            break
        layout = smaller
    return layout


def _halved(layout: Layout) -> Layout | None:
    """Half the shard along y and x where chunks allow it, else along z; None where a shard is one chunk."""
    for axes in ((-2, -1), (-3,)):
        shard = list(layout.shard)
        for axis in axes:
            if shard[axis] > layout.chunk[axis]:
                shard[axis] //= 2
        if tuple(shard) != layout.shard:
            return Layout(layout.chunk, tuple(shard))
    return None
