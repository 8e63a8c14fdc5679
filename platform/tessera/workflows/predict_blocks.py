"""One block of a prediction, in a worker: read, mirror, normalise, predict, write.

    read block --> turn with the network: its tiles, one after the other --> encode --> whole shards --> row

The plan is all that travels to the worker; what it loads stays there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.arithmetic import Arithmetic
from tessera.geometry.boxes import Box
from tessera.geometry.tiles import tile_planes
from tessera.images.levels import LevelTable
from tessera.images.quantise import StoredDtype, encode
from tessera.images.symmetries import SymmetryCount
from tessera.model.flat import remembering_flat
from tessera.model.memory import TileMemory, halved
from tessera.model.predictor import load_predictor, predict_box
from tessera.storage.locations import Place
from tessera.storage.volumes import open_volume
from tessera.workflows.block_jobs import Stopwatch, checksum
from tessera.workflows.raw import RawSource
from tessera.workflows.turn import NetworkTurn
from tessera.workflows.validity import BlockOutput, Validity, skipped_row


@dataclass(frozen=True)
class PredictPlan:
    """A checked prediction: everything a worker needs, as plain values.

    Attributes:
      raw: the raw volume, and how it is read.
      output: the probability volume's place.
      bundle: the model's folder.
      digest: of the bundle as it was planned with: a worker loads no other.
      roi: the region predicted, in the raw volume's voxels; the output's voxel 0 is its start.
      tile: most useful voxels per pass.
      symmetries: how many to average over.
      missing: sections that hold nothing, in the raw volume's numbering.
      validity: what of the region is predicted.
      skip: whether blocks and tiles without a valid voxel are gone over, and flat ones remembered.
      levels: grey levels of the sections that are read, in the same numbering, where the model's rule needs them.
      dtype: in which probability is stored.
    """

    raw: RawSource
    output: Place
    bundle: Path
    digest: str
    roi: Box
    tile: tuple[int, int, int]
    symmetries: SymmetryCount
    missing: frozenset[int]
    validity: Validity
    skip: bool
    levels: LevelTable | None
    dtype: StoredDtype = "uint8"


def make_block_worker(plan: PredictPlan) -> Process:
    """In a worker: load the model and open the volumes once; returns the function that does one block."""
    predict_tiles, contract = load_predictor(plan.bundle, plan.symmetries, plan.digest)
    if plan.skip:
        predict_tiles = remembering_flat(predict_tiles)
    volume = plan.raw.open()
    read = plan.raw.reader(volume)
    turn = NetworkTurn()
    predict_in_turn = turn.taken_by(predict_tiles)

    memory = TileMemory(plan.tile, [axis.period for axis in contract.network.arithmetic.axes])

    def probability_of(core: Box, wanted: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        return memory.fit(
            lambda tile: predict_box(
                predict_in_turn, read, volume.shape, core, tile, contract, plan.levels, plan.missing, wanted
            )
        )

    process = partial(process_block, plan, opened_once(plan), turn.ended_after(probability_of))
    return partial(in_memory, memory, with_tiles(process, plan, contract.network.arithmetic, memory))


def opened_once(plan: PredictPlan) -> Callable[[], BlockOutput]:
    """The output, opened when the first block asks for it: workers start before it is there."""
    return cache(lambda: BlockOutput.open(open_volume(plan.output, writable=True), plan.validity))


def with_tiles(process: Process, plan: PredictPlan, arithmetic: Arithmetic, memory: TileMemory) -> Process:
    """A process whose rows say where tiles met inside the block, counted from its first voxel: what an audit asks."""

    def process_and_tell(item: tuple[int, Box]) -> dict[str, Any]:
        row, core = process(item), item[1].shifted(plan.roi.start)
        met = tile_planes(core, halved(plan.tile, arithmetic.period, memory.halvings), arithmetic)
        tiles = [[plane - first for plane in own] for own, first in zip(met, core.start, strict=True)]
        return {**row, "detail": {**row.get("detail", {}), "tiles": tiles}}

    return process_and_tell


def squeezed(item: tuple[int, Box], halvings: int) -> tuple[int, Box, int]:
    """An item whose tiles are halved so often, because a worker ran out of memory."""
    return (*item[:2], halvings)


def in_memory(memory: TileMemory, process: Process, item: tuple[int, Box] | tuple[int, Box, int]) -> dict[str, Any]:
    """Process an item with tiles as small as it or earlier ones need; how small is told in its row."""
    index, box, *halvings = item
    memory.halve_to(*halvings or (0,))
    row = process((index, box))
    if not memory.halvings:
        return row
    return {**row, "detail": {**row.get("detail", {}), "tile_halvings": memory.halvings}}


def process_block(
    plan: PredictPlan,
    output_of: Callable[[], BlockOutput],
    probability_of: Callable[[Box, NDArray[np.bool_] | None], NDArray[np.float32]],
    item: tuple[int, Box],
) -> dict[str, Any]:
    """Predict one block and write it; returns the ledger's row.

    Args:
      plan: the checked prediction.
      output_of: gives the probability volume, and its validity.
      probability_of: float32 probability of a box in the raw volume's voxels, where it is wanted.
      item: the block's index, and its box in the output's voxels.
    """
    _, box = item
    watch, output = Stopwatch(), output_of()
    core = box.shifted(plan.roi.start)
    valid = output.valid_of(core)
    if plan.skip and not valid.any():
        return skipped_row(box.size * output.volume.dtype.itemsize)
    probability = probability_of(core, valid if plan.skip else None)
    row = watch.lap("compute")
    voxels = encoded_where(valid, probability, plan.dtype)
    output.write(box, voxels, valid)
    return {**row, **watch.lap("write"), "bytes": voxels.nbytes, "checksum": checksum(voxels)}


def encoded_where(valid: NDArray[np.bool_], probability: NDArray[np.float32], dtype: StoredDtype) -> NDArray[Any]:
    """Probability as it is stored: 0 where it is not valid.

    Args:
      valid: bool, (z, y, x).
      probability: of the same shape; what it holds elsewhere does not matter.
      dtype: in which it is stored.
    """
    voxels = np.zeros(valid.shape, dtype)
    # Section by section: most of a sparse block is never touched, and temporary copies stay small.
    for z in np.flatnonzero(valid.any(axis=(1, 2))):
        voxels[z] = encode(np.where(valid[z], probability[z], np.float32(0)), dtype)
    return voxels
