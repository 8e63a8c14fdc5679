"""The embedded synthetic volume: raw, membrane mask and instances, made where they are needed, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.images.phantom import VOXEL_SIZE_NM, Phantom, PhantomBlock
from tessera.images.phantom_options import PLAIN, PhantomOptions
from tessera.settings.common import RunnerSettings
from tessera.settings.places import home
from tessera.storage.layouts import legal_layout
from tessera.storage.locations import Place
from tessera.storage.objects import exists
from tessera.storage.removal import remove_output
from tessera.storage.volumes import open_volume, update_attributes
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job
from tessera.workflows.outputs import OutputPlan, create_output, digest_of

PARTS = {"raw": np.uint8, "labels": np.uint8, "instances": np.uint64, "unknown": np.uint8}


@dataclass(frozen=True)
class SyntheticVolumes:
    """Paths of the phantom's volumes.

    Attributes:
      raw: grey values.
      labels: mask, 0 membrane and 255 cell.
      instances: ids, 0 on membrane.
      unknown: 255 where a tear or fold hides what the labels say; None for a phantom without damage.
    """

    raw: Place
    labels: Place
    instances: Place
    unknown: Place | None = None


def synthetic_volumes(
    shape: tuple[int, int, int], seed: int, runner: RunnerSettings, options: PhantomOptions = PLAIN
) -> SyntheticVolumes:
    """The phantom of this shape, seed and options under TESSERA_HOME/volumes; made unless it is there."""
    phantom = Phantom(seed, options)
    plans = {part: _plan(part, shape, phantom) for part in _parts(options)}
    paths = {part: plan.path for part, plan in plans.items()}
    if not all(exists(path) for path in paths.values()):
        # They share one ledger: with one of them gone, its rows no longer say what is there.
        for path in paths.values():
            remove_output(path)
    made = [create_output(plan) for plan in plans.values()]
    if not all(volume.attributes.get("complete") for volume in made):
        # One pass makes a block of all parts, recorded in the ledger of the raw volume.
        run_block_job(plans["raw"], partial(_make_worker, paths, phantom), replace(runner, retry_failed=True))
        for path in paths.values():
            update_attributes(path, complete=True, invalid_sections=[])
    return SyntheticVolumes(**paths)


def _parts(options: PhantomOptions) -> list[str]:
    damaged = bool(options.tears or options.folds)
    return [part for part in PARTS if part != "unknown" or damaged]


def _plan(part: str, shape: tuple[int, int, int], phantom: Phantom) -> OutputPlan:
    stem, depends_on = f"phantom-{'x'.join(map(str, shape))}-{phantom.seed}", {"shape": shape, "seed": phantom.seed}
    if phantom.options != PLAIN:
        chosen = asdict(phantom.options)
        stem, depends_on = f"{stem}-{digest_of(chosen)[:8]}", {**depends_on, "options": chosen}
    path, dtype, layout = home() / "volumes" / f"{stem}-{part}.zarr", np.dtype(PARTS[part]).name, legal_layout(shape)
    return OutputPlan(path, "phantom", part, shape, dtype, layout, layout.shard, VOXEL_SIZE_NM, depends_on, name=part)


def _make_worker(paths: Mapping[str, Place], phantom: Phantom) -> Process:
    volumes = {part: open_volume(path, writable=True) for part, path in paths.items()}

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
    if part in ("labels", "unknown"):
        white = ~block.membrane if part == "labels" else block.unknown
        return np.where(white, 255, 0).astype(np.uint8)
    return block.raw if part == "raw" else block.instances
