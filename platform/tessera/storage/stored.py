"""Which chunks of a volume are stored, found without reading one: by listing objects, and by the index of each shard.

    folder or prefix --list--> shards that are there --last bytes of each--> chunks inside that are there

A listing costs a request per 1,000 objects, an index one small read; both only for the region that is asked about.
Web servers do not list: there up to 4,096 objects are asked for one by one, and more count as stored. So do those of a
bucket that may be read but not listed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from tessera.geometry.boxes import Box
from tessera.images.validity import ChunkMap
from tessera.storage.locations import Place, Url
from tessera.storage.objects import list_below, read_edge, stamp
from tessera.storage.volumes import Volume

_LOG = logging.getLogger(__name__)
_REQUESTS = 32
# One request each is cheaper than listing what lies beside them.
_FEW_OBJECTS = 256
_MOST_ASKED = 4096
_STAMPS, _SEED = 64, 20120301
_ABSENT = np.uint64(2**64 - 1)
Position = tuple[int, ...]


@dataclass(frozen=True)
class _Range:
    """Objects (shards, or chunks where there are none) that a region touches: half-open on each axis."""

    start: Position
    stop: Position

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    def holds(self, position: Sequence[int]) -> bool:
        return all(a <= i < b for a, i, b in zip(self.start, position, self.stop, strict=True))


def stored_chunks(volume: Volume, region: Box) -> ChunkMap:
    """Which chunks of a region are stored.

    Args:
      volume: any volume.
      region: a box inside it, not empty.

    Raises:
      OSError: the store cannot be reached, or refuses.
    """
    objects = _Range(_floor(region.start, volume.shard), _ceil(region.stop, volume.shard))
    found = np.zeros(objects.shape, bool)
    for position in _stored_objects(volume, objects):
        found[tuple(i - a for i, a in zip(position, objects.start, strict=True))] = True
    first, stop = _floor(region.start, volume.chunk), _ceil(region.stop, volume.chunk)
    per_shard = tuple(s // c for s, c in zip(volume.shard, volume.chunk, strict=True))
    flags = _with_inner_chunks(volume, objects, found, per_shard)
    # The objects' chunks may begin before the region, and pass it.
    origin = tuple(a * n for a, n in zip(objects.start, per_shard, strict=True))
    return ChunkMap(volume.chunk, first, np.ascontiguousarray(flags[Box(first, stop).relative_to(origin).slices]))


def digest_of_stored(volume: Volume, stored: ChunkMap) -> str:
    """SHA-256 that changes with what is stored: every chunk's flag, and the stamps of 64 seeded ones of those there.

    A sample of all places, as an identity takes, hits next to nothing in a sparse volume.
    """
    digest = hashlib.sha256(repr((stored.chunk, stored.first, stored.stored.shape)).encode())
    digest.update(np.packbits(stored.stored).tobytes())
    there = np.flatnonzero(stored.stored)
    drawn = np.random.default_rng(_SEED).choice(there, min(len(there), _STAMPS), replace=False)
    places = np.stack(np.unravel_index(np.sort(drawn), stored.stored.shape), axis=1) + np.array(stored.first)
    shards = np.unique(places * np.array(stored.chunk) // np.array(volume.shard), axis=0).tolist()
    with ThreadPoolExecutor(_REQUESTS) as pool:
        stamps = list(pool.map(lambda place: stamp(_object(volume, place)), shards))
    digest.update(repr(list(zip(shards, stamps, strict=True))).encode())
    return digest.hexdigest()


def _floor(voxels: Position, extent: Position) -> Position:
    return tuple(a // n for a, n in zip(voxels, extent, strict=True))


def _ceil(voxels: Position, extent: Position) -> Position:
    return tuple(-(-b // n) for b, n in zip(voxels, extent, strict=True))


# Objects


def _root(volume: Volume) -> Place:
    return volume.place / volume.array.path if volume.array.path else volume.place


def _object(volume: Volume, position: Sequence[int]) -> Place:
    return _root(volume) / volume.array.metadata.encode_chunk_key(tuple(position))


def _stored_objects(volume: Volume, wanted: _Range) -> Iterable[Position]:
    try:
        return list(_found_objects(volume, wanted))
    except PermissionError as error:
        # A public bucket may let everyone read an object, and nobody list: what is missing there fails when it is read.
        _LOG.warning("%s: all %d objects of it count as stored (%s)", volume.url, prod(wanted.shape), error)
        return _all(wanted)


def _found_objects(volume: Volume, wanted: _Range) -> Iterable[Position]:
    root, count = _root(volume), prod(wanted.shape)
    if isinstance(root, Path):
        return _listed_in_folder(volume, root, wanted)
    if count <= _FEW_OBJECTS or (not root.writable and count <= _MOST_ASKED):
        return _asked_for(volume, wanted)
    if not root.writable:
        _LOG.warning("%s lists nothing: all %d objects of it count as stored", volume.url, count)
        return _all(wanted)
    return _listed_in_store(volume, root, wanted)


def _all(wanted: _Range) -> Iterable[Position]:
    return product(*(range(a, b) for a, b in zip(wanted.start, wanted.stop, strict=True)))


def _asked_for(volume: Volume, wanted: _Range) -> list[Position]:
    places = list(_all(wanted))
    with ThreadPoolExecutor(_REQUESTS) as pool:
        stamps = pool.map(lambda place: stamp(_object(volume, place)), places)
        return [place for place, found in zip(places, stamps, strict=True) if found is not None]


def _key_style(volume: Volume) -> tuple[str, str]:
    """What chunk keys begin with, and what parts their numbers."""
    key = volume.array.metadata.encode_chunk_key((7,) * len(volume.shape))
    found = re.fullmatch(r"(c[./])?7(?:([./])7)*", key)
    if found is None:
        raise ValueError(f"{volume.url} names its chunks like {key!r}: which of them are stored is not known.")
    return found[1] or "", found[2] or "/"


def _listed_in_folder(volume: Volume, root: Path, wanted: _Range) -> Iterator[Position]:
    prefix, separator = _key_style(volume)
    if separator == "/":
        yield from _walk(root / prefix, wanted, ())
        return
    for name in _names(root):
        numbers = name.removeprefix(prefix).split(".")
        if len(numbers) == len(wanted.start) and all(n.isdigit() for n in numbers):
            position = tuple(int(n) for n in numbers)
            if wanted.holds(position):
                yield position


def _walk(folder: Path, wanted: _Range, above: Position) -> Iterator[Position]:
    axis = len(above)
    inside = range(wanted.start[axis], wanted.stop[axis])
    for number in (int(name) for name in _names(folder) if name.isdigit()):
        if number in inside:
            if axis + 1 == len(wanted.start):
                yield (*above, number)
            else:
                yield from _walk(folder / str(number), wanted, (*above, number))


def _names(folder: Path) -> list[str]:
    try:
        # Path.iterdir would make a Path of each of a million names.
        return os.listdir(folder)  # noqa: PTH208
    except FileNotFoundError:
        return []


def _listed_in_store(volume: Volume, root: Url, wanted: _Range) -> Iterator[Position]:
    prefix, separator = _key_style(volume)
    nested = separator == "/"
    # One listing is a chain of requests: those of the sections go side by side.
    starts = [f"{prefix}{z}/" for z in range(wanted.start[0], wanted.stop[0])] if nested else [""]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for keys in pool.map(lambda start: list(list_below(root, start)), starts):
            for key in keys:
                numbers = key.removeprefix(prefix).split(separator)
                if len(numbers) == len(wanted.start) and all(n.isdigit() for n in numbers):
                    position = tuple(int(n) for n in numbers)
                    if wanted.holds(position):
                        yield position


# Inside shards


def _with_inner_chunks(
    volume: Volume, objects: _Range, found: NDArray[np.bool_], per_shard: tuple[int, ...]
) -> NDArray[np.bool_]:
    """A flag per chunk, from one per object; chunks inside shards by the shards' indices."""
    if prod(per_shard) == 1:
        return found
    flags = found
    for axis, count in enumerate(per_shard):
        flags = np.repeat(flags, count, axis=axis)
    codec = _readable_codec(volume)
    if codec is None:
        return flags
    positions = np.argwhere(found)

    def inner(place: NDArray[np.int64]) -> NDArray[np.bool_]:
        name = _object(volume, [int(i) + a for i, a in zip(place, objects.start, strict=True)])
        return _inner_chunks(name, per_shard, at_end=str(codec.index_location.value) == "end")

    with ThreadPoolExecutor(_REQUESTS) as pool:
        for place, own in zip(positions, pool.map(inner, positions), strict=True):
            flags[tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, per_shard, strict=True))] = own
    return flags


def _readable_codec(volume: Volume) -> Any:
    """The sharding codec, where its index is what nearly everyone writes; None for others: shards then count whole."""
    codecs: tuple[Any, ...] = tuple(getattr(volume.array.metadata, "codecs", ()))
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        return None
    index = codecs[0].index_codecs
    usual = (BytesCodec(endian="little"), Crc32cCodec())
    return codecs[0] if tuple(index) == usual else None


def _inner_chunks(name: Place, per_shard: tuple[int, ...], *, at_end: bool) -> NDArray[np.bool_]:
    """Which chunks a shard's index names; all of them where it is damaged, so that reading them says so."""
    count = 16 * prod(per_shard)
    data = read_edge(name, count + 4, at_end=at_end)
    if len(data) != count + 4:
        return np.ones(per_shard, bool)
    entries = np.frombuffer(data[:count], "<u8").reshape(*per_shard, 2)
    return np.asarray((entries != _ABSENT).any(axis=-1), bool)
