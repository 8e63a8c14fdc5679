"""Which data was this? A cheap identity for terabyte inputs, and an exact fingerprint for small ones.

The identity is part of a job's key: a job resumes only on the input that it began with. The fingerprint travels in the
bundle: it says which voxels a model was trained on, wherever they were stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

from tessera.geometry.boxes import Box
from tessera.storage.objects import stamp
from tessera.storage.volumes import Volume

_SAMPLES = 64
_REQUESTS = 16
# Fixed, and not a setting: two runs must look at the same files to agree.
_SEED = 20120301


def fingerprint(volume: Volume, boxes: Sequence[Box] | None = None) -> str:
    """SHA-256 of shape, dtype and decoded voxels: the same wherever and however they are stored.

    Reads all of the boxes, one slab of chunks at a time; meant for training data.

    Args:
      volume: any volume.
      boxes: what to read, in this order; the whole volume by default.

    Raises:
      ValueError: a box leaves the volume.
    """
    chosen = [Box.whole(volume.shape)] if boxes is None else list(boxes)
    digest = hashlib.sha256()
    digest.update(_json({"shape": volume.shape, "dtype": volume.dtype.name}))
    for box in chosen:
        digest.update(_json({"start": box.start, "stop": box.stop}))
        for slab in _slabs(box, volume.chunk[-3]):
            voxels = volume.read(slab)
            digest.update(np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def identity(volume: Volume) -> str:
    """SHA-256 that changes when a volume is moved, rewritten or changed, from metadata and at most 64 files' stamps.

    Path or URL, array metadata, axes, voxel size, invalid sections, and up to 64 seeded shards' size and modification
    time, or ETag in an object store. A shard that is absent (all zeros) counts as absent. Other attributes do not
    count: lineage, or a pyramid, may be added later.

    Raises:
      OSError: the volume is gone or unreadable.
    """
    volume = volume.stored
    folder = volume.place / volume.array.path if volume.array.path else volume.place
    keys = _sampled_keys(volume)
    with ThreadPoolExecutor(_REQUESTS) as pool:  # one after the other, 64 requests to a far store take seconds
        stamps = list(pool.map(stamp, [folder / key for key in keys]))
    facts = {
        "path": str(folder.resolve() if isinstance(folder, Path) else folder),
        "metadata": volume.array.metadata.to_dict(),
        "axes": volume.axes,
        "voxel_size_nm": volume.voxel_size_nm,
        "invalid_sections": sorted(volume.invalid_sections),
        "files": dict(zip(keys, stamps, strict=True)),
    }
    return hashlib.sha256(_json(facts)).hexdigest()


def _slabs(box: Box, depth: int) -> Iterator[Box]:
    """Cut a box along z (and c) so that the pieces' bytes, one after the other, are the box's own."""
    channels = [(c,) for c in range(box.start[0], box.stop[0])] if box.ndim == 4 else [()]
    (z0, z1), rest = (box.start[-3], box.stop[-3]), slice(-2, None)
    for lead, z in product(channels, range(z0, z1, depth)):
        start, stop = (*lead, z), (*(c + 1 for c in lead), min(z + depth, z1))
        yield Box(start + box.start[rest], stop + box.stop[rest])


def _sampled_keys(volume: Volume) -> list[str]:
    """Store keys of up to 64 shards, drawn by a fixed seed."""
    grid = tuple(ceil(n / s) for n, s in zip(volume.shape, volume.shard, strict=True))
    count = prod(grid)
    drawn = np.random.default_rng(_SEED).choice(count, min(count, _SAMPLES), replace=False)
    places = [tuple(int(i) for i in np.unravel_index(index, grid)) for index in sorted(drawn)]
    return [volume.array.metadata.encode_chunk_key(place) for place in places]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()
