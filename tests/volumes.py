"""Where the tests find EM volumes, and tiny ones of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.storage.volumes import create_volume


def isbi_dir() -> Path | None:
    """The folder of the ISBI 2012 stacks: TESSERA_ISBI_DIR, else the one beside the repository; None where absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "isbi2012"
    folder = Path(os.environ.get("TESSERA_ISBI_DIR", beside))
    return folder if (folder / "train-volume.tif").is_file() and (folder / "train-labels.tif").is_file() else None


def grey(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Grey values that vary everywhere, so that a voxel out of place shows."""
    return np.random.default_rng(seed).integers(1, 255, shape, dtype=np.uint8)


def mask(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A membrane of one pixel around cells of 7x7: 0 membrane, 255 cell."""
    y, x = np.indices(shape[-2:])
    return np.broadcast_to(np.where((y % 8 == 0) | (x % 8 == 0), 0, 255).astype(np.uint8), shape).copy()


def put_volume(
    path: Path,
    voxels: NDArray[Any],
    voxel_size_nm: tuple[float, float, float] = (50, 4, 4),
    translation_nm: tuple[float, float, float] | None = None,
    **attributes: Any,
) -> Path:
    """Write a finished volume, in one shard, as our own jobs leave it; `attributes` add to or replace its own."""
    own = {"complete": True, "invalid_sections": [], **attributes}
    layout = (1,) * (voxels.ndim - 3) + voxels.shape[-3:]
    volume = create_volume(
        path,
        voxels.shape,
        voxels.dtype,
        voxel_size_nm=voxel_size_nm,
        chunk=layout,
        shard=layout,
        attributes=own,
        translation_nm=translation_nm,
    )
    volume.write(Box.whole(voxels.shape), voxels)
    return path


def walls(
    shape: tuple[int, int, int], voxel_size: tuple[float, float, float] = (50, 4, 4), cells: int = 40, seed: int = 3
) -> NDArray[np.float32]:
    """Membrane probability around cells of all sizes: those of the nearest of random points, blurred."""
    points = np.random.default_rng(seed).random((cells, 3)) * shape
    scale = np.array(voxel_size) / voxel_size[-1]
    voxels = np.stack(np.indices(shape), axis=-1)
    nearest = np.sort([np.linalg.norm((voxels - point) * scale, axis=-1) for point in points], axis=0)
    return np.exp(-(((nearest[1] - nearest[0]) / 3) ** 2)).astype(np.float32)
