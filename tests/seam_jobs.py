"""Predictions of the phantom in memory, right ones and ones with a planted fault: what the seam auditor is tried on.

A job is drawn from its seed: network, volume, region, block and tile. The faults are those that tiled inference has in
earnest: each tile normalised by its own statistics, or predicted without all of the voxels around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from learning import learned, phantom_sections
from tessera.geometry.arithmetic import Arithmetic
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.geometry.tiles import tile_planes
from tessera.images.phantom import Phantom
from tessera.images.phantom_options import PLAIN, PhantomOptions
from tessera.images.quantise import quantise
from tessera.metrics.seam_verdict import SeamAudit, finish
from tessera.metrics.seams import REACH, AxisPlanes, block_seams
from tessera.model.bundle import Contract
from tessera.model.predictor import Predict, predict_box
from tessera.model.spec import UnetSpec
from tessera.settings.train import ScheduleSettings, TrainSettings
from tessera.workflows.training_plan import first_contract

ORGANELLES = PhantomOptions(mitochondria=True, vesicles=True, tears=0.05, folds=0.05)


@dataclass(frozen=True)
class Network:
    """A network and how long it learns: crops and steps of the phantom's first sections."""

    spec: UnetSpec
    steps: int
    crop_px: int = 96


NETWORKS = {
    "shallow": Network(UnetSpec(6, 2, "same", batch_norm=True, dropout=0.0), 100),
    "deep": Network(UnetSpec(8, 3, "same", batch_norm=True, dropout=0.0), 100),
    "valid": Network(UnetSpec(8, 2, "valid", batch_norm=False, dropout=0.0), 100, crop_px=92),
    "deep, trained longer": Network(UnetSpec(6, 3, "same", batch_norm=True, dropout=0.0), 240),
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with each tile.

    Attributes:
      kind: `normalisation` by the tile's own mean and spread; `mirror` or `zero` in place of the voxels around it.
      strength: part of the way from the right normalisation to the tile's own.
      halo_px: voxels around a tile that it is given all the same.
    """

    kind: Literal["normalisation", "mirror", "zero"]
    strength: float = 1.0
    halo_px: int = 0


@dataclass(frozen=True)
class Job:
    """A prediction: which network, and of which region in which pieces."""

    seed: int
    network: str
    phantom: Phantom
    roi: Box
    block: tuple[int, int, int]
    tile: tuple[int, int, int]


def drawn(seed: int, sections: tuple[int, int] = (4, 8), size: tuple[int, int] = (320, 512)) -> Job:
    """The job of a seed; extents are drawn from these ranges."""
    rng = np.random.default_rng(seed)
    network = str(rng.choice(list(NETWORKS)))
    phantom = Phantom(100 + int(rng.integers(8)), ORGANELLES if rng.random() < 0.5 else PLAIN)
    offset = [int(rng.integers(0, 3)), *map(int, rng.integers(0, 40, 2))] if rng.random() < 0.5 else [0, 0, 0]
    shape = [int(rng.integers(low, high + 1)) for low, high in (sections, size, size)]
    roi = Box(tuple(offset), tuple(a + n for a, n in zip(offset, shape, strict=True)))
    block = (int(rng.choice([2, 4])), int(rng.choice([64, 128, 192])), int(rng.choice([64, 128, 192])))
    tile = (1, int(rng.choice([40, 48, 64, 96])), int(rng.choice([40, 48, 64, 96])))
    return Job(seed, network, phantom, roi, block, tile)


def trained(folder: Path, name: str) -> Path:
    """The bundle of one of `NETWORKS`, trained once and kept in `folder`."""
    network, place = NETWORKS[name], folder / name.replace(", ", "-").replace(" ", "-")
    if not (place / "bundle").exists():
        schedule = ScheduleSettings(steps=network.steps, batch=4, crop_px=network.crop_px)
        settings = TrainSettings(network=network.spec, schedule=schedule)
        sections = phantom_sections(0, 8)
        learned(place, settings, first_contract(settings, sections), sections)
    return place / "bundle"


def raw_of(job: Job) -> NDArray[np.uint8]:
    """The raw volume: the region and what lies around it."""
    stop = tuple(b + margin for b, margin in zip(job.roi.stop, (1, 60, 60), strict=True))
    # Of few extents, so that jobs share what takes long to make.
    made = Box((0, 0, 0), tuple(-(-n // step) * step for n, step in zip(stop, (12, 312, 312), strict=True)))
    return _phantom_block(job.phantom, made)[Box((0, 0, 0), stop).slices]


@lru_cache(maxsize=24)
def _phantom_block(phantom: Phantom, box: Box) -> NDArray[np.uint8]:
    return phantom.block(box).raw


def with_fault(predict: Predict, contract: Contract, fault: Fault) -> Predict:
    """A network that does to each tile what a wrong pipeline would."""
    cut = contract.network.arithmetic.halo[1] - fault.halo_px
    if fault.kind != "normalisation" and cut < 1:
        raise ValueError(f"halo_px={fault.halo_px} is all of the network's halo: nothing would be wrong.")

    def normalised(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        mean, std = (f(tiles, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
        return predict(tiles + np.float32(fault.strength) * ((tiles - mean) / std - tiles))

    def alone(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        around: Mapping[str, Any] = {"mirror": {"mode": "reflect"}, "zero": {"mode": "constant"}}[fault.kind]
        return predict(np.pad(tiles[:, cut:-cut, cut:-cut], ((0, 0), (cut, cut), (cut, cut), (0, 0)), **around))

    return normalised if fault.kind == "normalisation" else alone


def predicted(job: Job, predict: Predict, contract: Contract) -> NDArray[np.uint8]:
    """The job's output, block by block as a worker makes it."""
    raw, output = raw_of(job), np.empty(job.roi.shape, np.uint8)
    for _, box in BlockGrid(job.roi.shape, job.block).boxes():
        core = box.shifted(job.roi.start)
        probability = predict_box(predict, lambda b: raw[b.slices], raw.shape, core, job.tile, contract)
        output[box.slices] = quantise(probability)
    return output


def audited(job: Job, output: NDArray[np.uint8], arithmetic: Arithmetic) -> SeamAudit:
    """The auditor's finding on an output."""
    grid, origin = BlockGrid(job.roi.shape, job.block), job.roi.start
    found = []
    for index, box in grid.boxes():
        planes = tile_planes(box.shifted(origin), job.tile, arithmetic)
        axes = [
            AxisPlanes(a, b, n, tuple(p - first for p in own), axis.period, first)
            for a, b, n, own, axis, first in zip(
                box.start, box.stop, grid.shape, planes, arithmetic.axes, origin, strict=True
            )
        ]
        seen = box.grown((1, REACH, REACH)).clipped(Box.whole(grid.shape))
        found.append((index, block_seams(output[seen.slices], seen.start, axes)))
    return finish(lambda: found, job.block[0])
