"""Volumes to look at: raw, probability and labels that know of each other, as the jobs leave them."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessera.geometry.boxes import Box
from tessera.settings.view import ViewSettings
from tessera.storage.volumes import create_volume
from tessera.workflows.view import viewing
from volumes import grey

RAW_SHAPE, START, SHAPE = (6, 96, 128), (1, 16, 32), (5, 64, 96)
SIZE_NM = (50.0, 4.0, 4.0)


def put_scene(folder: Path) -> tuple[Path, Path, Path]:
    """Raw, a region's probability and its labels; every voxel of the latter two follows from raw's.

    Probability is 255 where raw is below 100, else 0; ids number squares of 16 pixels, 0 where probability is 255.
    """
    raw, layout = grey(RAW_SHAPE), {"chunk": (2, 16, 16), "shard": (2, 32, 32)}
    region = raw[tuple(slice(a, a + n) for a, n in zip(START, SHAPE, strict=True))]
    probability = np.where(region < 100, 255, 0).astype(np.uint8)
    _, y, x = np.indices(SHAPE)
    labels = np.where(probability > 0, 0, 1 + y // 16 * 6 + x // 16).astype(np.uint64)
    paths = folder / "raw.zarr", folder / "probability.zarr", folder / "cells.zarr"
    shift = tuple(a * s for a, s in zip(START, SIZE_NM, strict=True))
    own = (
        {"made_by": "ingest", "kind": "image", "invalid_sections": [3]},
        {"made_by": "predict", "kind": "membrane probability", "input": str(paths[0])},
        {"made_by": "segment", "kind": "cells per section", "input": str(paths[1]), "run_id": "abc"},
    )
    for path, voxels, attributes, at in zip(paths, (raw, probability, labels), own, (None, shift, shift), strict=True):
        volume = create_volume(
            path,
            voxels.shape,
            voxels.dtype,
            voxel_size_nm=SIZE_NM,
            attributes={"complete": True, **attributes},
            translation_nm=at,
            **layout,
        )
        volume.write(Box.whole(voxels.shape), voxels)
    return paths


@contextmanager
def served(volume: Path | str, **settings: object) -> Iterator[str]:
    """`tessera view` on a free port; gives the page's address without the slash at its end."""
    with viewing(ViewSettings(str(volume), port=0, **settings)) as told:  # type: ignore[arg-type]
        yield told.split()[1].rstrip("/")


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(url: str, method: str = "GET", **headers: str) -> Reply:
    """One request; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        url, headers=named, method=method, data=b"x" if method in ("POST", "PUT") else None
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return Reply(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, dict(error.headers), error.read())
