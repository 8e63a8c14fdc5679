"""The embedded synthetic volume: raw, membrane mask and instances, made where they are needed, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.images.phantom import VOXEL_SIZE_NM, Phantom, PhantomBlock
from tessera.settings.common import RunnerSettings
from tessera.settings.places import home
from tessera.storage.volumes import create_volume, open_volume, update_attributes
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job

PARTS = {"raw": np.uint8, "labels": np.uint8, "instances": np.uint64}


@dataclass(frozen=True)
class SyntheticVolumes:
    """Paths of the phantom's volumes: grey values, mask (0 membrane, 255 cell) and instance ids (0 membrane)."""

    raw: Path
    labels: Path
    instances: Path


def synthetic_volumes(shape: tuple[int, int, int], seed: int, runner: RunnerSettings) -> SyntheticVolumes:
    """The phantom of this shape and seed under TESSERA_HOME/volumes; made unless it is there."""
    stem = f"phantom-{'x'.join(map(str, shape))}-{seed}"
    paths = {part: home() / "volumes" / f"{stem}-{part}.zarr" for part in PARTS}
    for part, path in paths.items():
        _make(path, part, shape, seed, runner)
    return SyntheticVolumes(**paths)


def _make(path: Path, part: str, shape: tuple[int, int, int], seed: int, runner: RunnerSettings) -> None:
    attributes = {"made_by": "phantom", "kind": part, "complete": False}
    volume = create_volume(
        path, shape, PARTS[part], voxel_size_nm=VOXEL_SIZE_NM, attributes=attributes, name=part, exist_ok=True
    )
    if volume.attributes.get("complete"):
        return
    facts = {"workflow": "phantom", "part": part, "shape": shape, "seed": seed}
    run_block_job(path, BlockGrid(shape, volume.shard), partial(_make_worker, path, part, seed), facts, runner)
    update_attributes(path, complete=True, invalid_sections=[])


def _make_worker(path: Path, part: str, seed: int) -> Process:
    volume, phantom = open_volume(path, writable=True), Phantom(seed)

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        _, box = item
        watch = Stopwatch()
        voxels = _part(phantom.block(box), part)
        row = watch.lap("compute")
        volume.write(box, voxels)
        return {**row, **watch.lap("write"), "bytes": voxels.nbytes, "checksum": checksum(voxels)}

    return process


def _part(block: PhantomBlock, part: str) -> NDArray[Any]:
    if part == "labels":
        return np.where(block.membrane, 0, 255).astype(np.uint8)
    return block.raw if part == "raw" else block.instances
