"""A volume's coarser levels, level by level, each a block job of its own over the level above.

    level 0 --read 2x2(x2) windows--> mean, or mode of labels --> whole shards of level 1 --> ... --> named in metadata

Readers find the levels only when all of them are done: the list in the metadata is written last. A kill loses nothing;
the same command goes on in the level where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.images.pooling import mean_pool
from tessera.labels.pooling import mode_pool
from tessera.settings.places import input_path
from tessera.settings.pyramid import PyramidSettings
from tessera.storage.identity import identity
from tessera.storage.layouts import legal_layout
from tessera.storage.lease import Lease
from tessera.storage.ledger_job import ledger_path
from tessera.storage.locations import Place
from tessera.storage.pyramids import (
    PyramidLevel,
    create_level,
    finer_box,
    finish_levels,
    level_layout,
    open_level,
    plan_levels,
    remove_levels,
)
from tessera.storage.removal import remove_stage
from tessera.storage.volumes import Volume, is_ours, open_volume
from tessera.workflows.block_jobs import Stopwatch, checksum, make_checker_of, run_block_job, session
from tessera.workflows.outputs import AVERAGED, OutputPlan, open_finished

_log = logging.getLogger(__name__)

Rule = Literal["mean", "mode"]
POOLS: dict[Rule, Callable[[NDArray[Any], tuple[int, ...]], NDArray[Any]]] = {"mean": mean_pool, "mode": mode_pool}


@dataclass(frozen=True)
class PyramidPlan:
    """One level to be made: everything a worker needs, as plain values.

    Attributes:
      volume: the volume's place.
      finer: the level above; None where that is the finest.
      level: the level.
      rule: how a window becomes a voxel.
    """

    volume: Place
    finer: PyramidLevel | None
    level: PyramidLevel
    rule: Rule


def pyramid(settings: PyramidSettings) -> Place:
    """Run the workflow; returns the volume's place.

    Raises:
      ValueError, OSError: the volume is not ours, half-written, or has no voxel size.
      BlocksFailedError: some blocks were given up; the levels are not named in the metadata.
    """
    volume = open_finished(input_path(settings.volume))
    if not is_ours(volume.place):
        raise ValueError(
            f"{volume.url} was not made by tessera: it is left as it is. Levels are added to the volumes that ingest, "
            "predict and segment write."
        )
    planned = plan_levels(volume, settings.levels)
    rule: Rule = "mean" if volume.attributes.get("kind") in AVERAGED else "mode"
    with session(settings), Lease.take(ledger_path(volume.place), settings.lease_expiry_s) as lease:
        if settings.overwrite:
            remove_levels(volume)
        for finer, level in zip((None, *planned), planned, strict=False):
            if settings.overwrite:
                remove_stage(volume.place, _stage(level))
            _make_level(settings, volume, PyramidPlan(volume.place, finer, level, rule), lease)
        finish_levels(volume, planned)
    _log.info("%s: %d levels below the finest", volume.url, len(planned))
    return volume.place


def _stage(level: PyramidLevel) -> str:
    return f"level_{level.number}"


def _make_level(settings: PyramidSettings, volume: Volume, plan: PyramidPlan, lease: Lease) -> None:
    create_level(volume, plan.level)
    job, stage = level_job(volume, plan), _stage(plan.level)
    check = partial(_make_checker, plan)
    run_block_job(job, partial(_make_worker, plan), settings, stage=stage, lease=lease, make_checker=check)


def level_job(volume: Volume, plan: PyramidPlan) -> OutputPlan:
    """The blocks of a level, and all that they depend on."""
    shape = plan.level.shape
    layout = level_layout(volume, shape)
    return OutputPlan(
        volume.place,
        made_by="pyramid",
        kind=plan.rule,
        shape=shape,
        dtype=volume.dtype.name,
        layout=layout,
        # Where the format has no shards, a task is as large as one would be.
        block=legal_layout(shape, volume.dtype.itemsize, layout.chunk).shard,
        voxel_size_nm=plan.level.level.voxel_size_nm,
        depends_on={"finest": identity(volume), "level": plan.level.number, "factors": plan.level.factors},
    )


def _make_worker(plan: PyramidPlan) -> Process:
    finest = open_volume(plan.volume)
    finer = finest if plan.finer is None else open_level(finest, plan.finer)
    return partial(process_block, plan, finer, open_level(finest, plan.level, writable=True))


def _make_checker(plan: PyramidPlan) -> Process:
    return make_checker_of(open_level(open_volume(plan.volume), plan.level))


def process_block(plan: PyramidPlan, finer: Volume, coarser: Volume, item: tuple[int, Box]) -> dict[str, Any]:
    """Make one block of a level and write it; returns the ledger's row.

    Args:
      plan: says how a window becomes a voxel.
      finer: the level above.
      coarser: the level, to write.
      item: the block's index and box.
    """
    _, box = item
    watch = Stopwatch()
    block = np.empty(box.shape, coarser.dtype)
    # By slabs of one chunk: the level above a block is up to 8 times its size, and its sums are float64.
    for start in range(box.start[-3], box.stop[-3], coarser.chunk[-3]):
        slab = _slab(box, start, coarser.chunk[-3])
        voxels = finer.read(finer_box(slab, plan.level.factors, finer.shape))
        block[slab.relative_to(box.start).slices] = POOLS[plan.rule](voxels, plan.level.factors)
    row = watch.lap("compute")
    coarser.write(box, block)
    return {**row, **watch.lap("write"), "bytes": block.nbytes, "checksum": checksum(block)}


def _slab(box: Box, start: int, depth: int) -> Box:
    """The part of a box from section `start` on, at most `depth` sections of it."""
    lead, rest = box.ndim - 3, slice(-2, None)
    first, stop = (*box.start[:lead], start, *box.start[rest]), (*box.stop[:lead], start + depth, *box.stop[rest])
    return Box(first, tuple(min(a, b) for a, b in zip(stop, box.stop, strict=True)))
