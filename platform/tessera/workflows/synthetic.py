"""The embedded synthetic volume: raw, membrane mask and instances, made where they are needed, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.images.phantom import VOXEL_SIZE_NM, Phantom, PhantomBlock
from tessera.settings.common import RunnerSettings
from tessera.settings.places import home
from tessera.storage.layouts import legal_layout
from tessera.storage.ledger import remove_output
from tessera.storage.volumes import open_volume, update_attributes
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job
from tessera.workflows.outputs import OutputPlan, create_output

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
    plans = {part: _plan(path, part, shape, seed) for part, path in paths.items()}
    if not all(path.exists() for path in paths.values()):
        # They share one ledger: with one of them gone, its rows no longer say what is there.
        for path in paths.values():
            remove_output(path)
    made = [create_output(plan) for plan in plans.values()]
    if not all(volume.attributes.get("complete") for volume in made):
        # One pass makes a block of all three, recorded in the ledger of the raw volume.
        run_block_job(plans["raw"], partial(_make_worker, paths, seed), runner)
        for path in paths.values():
            update_attributes(path, complete=True, invalid_sections=[])
    return SyntheticVolumes(**paths)


def _plan(path: Path, part: str, shape: tuple[int, int, int], seed: int) -> OutputPlan:
    dtype, depends_on = np.dtype(PARTS[part]).name, {"shape": shape, "seed": seed}
    layout = legal_layout(shape)
    return OutputPlan(path, "phantom", part, shape, dtype, layout, layout.shard, VOXEL_SIZE_NM, depends_on, name=part)


def _make_worker(paths: Mapping[str, Path], seed: int) -> Process:
    volumes = {part: open_volume(path, writable=True) for part, path in paths.items()}
    phantom = Phantom(seed)

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        _, box = item
        watch = Stopwatch()
        block = phantom.block(box)
        row = watch.lap("compute")
        for part, volume in volumes.items():
            volume.write(box, _part(block, part))
        return {**row, **watch.lap("write"), "bytes": block.raw.nbytes, "checksum": checksum(block.raw)}

    return process


def _part(block: PhantomBlock, part: str) -> NDArray[Any]:
    if part == "labels":
        return np.where(block.membrane, 0, 255).astype(np.uint8)
    return block.raw if part == "raw" else block.instances
