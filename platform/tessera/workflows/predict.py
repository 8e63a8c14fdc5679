"""Raw volume to membrane probability, block by block: read, mirror, normalise, predict, write.

    volume --core + halo--> mirror at the true edge --> normalise --> tiles --> network --> uint8 --> whole shards

The halo is derived from the model's layers. What is not valid (validity.py) is neither predicted nor called cell: it
holds 0 and is marked in the output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.arithmetic import Arithmetic
from tessera.geometry.boxes import Box
from tessera.geometry.tiles import tile_planes
from tessera.images.levels import LevelTable
from tessera.images.quantise import StoredDtype, encode, polarity_of
from tessera.images.symmetries import SymmetryCount, check_square
from tessera.model.bundle import check_fit
from tessera.model.flat import remembering_flat
from tessera.model.memory import TileMemory, halved
from tessera.model.predictor import load_predictor, predict_box
from tessera.model.weights_file import check_weights
from tessera.settings.places import home
from tessera.settings.predict import PredictSettings
from tessera.storage.identity import identity
from tessera.storage.locations import Place
from tessera.storage.volumes import Volume, open_volume, update_attributes
from tessera.tracking.runs import Tracker, check_tracking, tracking_uri
from tessera.workflows.audit import audit_output
from tessera.workflows.block_jobs import BlockReport, Stopwatch, checksum, run_block_job, session
from tessera.workflows.levels import attribute_of, volume_levels
from tessera.workflows.models import FoundModel, find_model
from tessera.workflows.outputs import OutputPlan, claim_output, digest_of, plan_output, tracked_output
from tessera.workflows.plain import plain
from tessera.workflows.raw import RawSource, Read, find_raw, region_of
from tessera.workflows.reporting import JobReports, reporting
from tessera.workflows.turn import NetworkTurn
from tessera.workflows.validity import BlockOutput, Validity, plan_validity, skipped_row, skipping
from tessera.workflows.worker_plan import planned, share_of_node

_log = logging.getLogger(__name__)

KIND = "membrane probability"


@dataclass(frozen=True)
class PredictPlan:
    """A checked prediction: everything a worker needs, as plain values.

    Attributes:
      raw: the raw volume, and how it is read.
      output: the probability volume's place.
      bundle: the model's folder.
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
    roi: Box
    tile: tuple[int, int, int]
    symmetries: SymmetryCount
    missing: frozenset[int]
    validity: Validity
    skip: bool
    levels: LevelTable | None
    dtype: StoredDtype = "uint8"


def predict(settings: PredictSettings) -> Place:
    """Run the workflow; returns the output's path or URL.

    Raises:
      ValueError, OSError: something does not fit, before any work is done.
      BlocksFailedError: some blocks were given up, after the rest was done.
      AuditFailedError: seams show in what was predicted; it stays.
    """
    check_tracking(tracking_uri(settings.tracking.uri, home()))
    model = find_model(settings.model, settings.tracking.uri)
    plan, output = plan_prediction(settings, model)
    with session(settings):
        plan = fitted(plan, settings, model, output)
        claim_output(output, overwrite=settings.overwrite)
        tags = {"tessera.model": model.name}
        with tracked_output(output, settings, tags) as run, reporting(run, output.path) as reports:
            _tell_origins(run, output, model)
            make_worker, tell = partial(make_block_worker, plan), reports.over_time()
            settled = skipping(plan.validity, output.grid, output.dtype) if plan.skip else None
            report = run_block_job(output, make_worker, settings, squeeze=squeezed, tell=tell, settled=settled)
            _record(reports, plan, report)
            if settings.audit:
                audit_output(output.path, settings, run)
    return output.path


def plan_prediction(settings: PredictSettings, model: FoundModel) -> tuple[PredictPlan, OutputPlan]:
    """Check everything that can be checked before work starts; nothing is touched.

    Raises:
      OSError: the volume is not there, or cannot be read.
      ValueError: the model or the symmetries do not fit the volume, or the block does not fit the shards.
    """
    raw, volume = find_raw(settings, model.contract)
    read = raw.reader(volume)
    check_contract(model, volume, accept_mismatch=settings.accept_mismatch)
    symmetries = chosen_symmetries(settings.symmetries, model, volume)
    roi = region_of(settings, volume)
    _glance_at_values(volume, roi, read)
    validity = plan_validity(settings, volume, roi)
    levels = levels_for(model, volume, validity, read)
    output = plan_output(
        settings,
        settings.output,
        roi.shape,
        settings.output_dtype,
        block=settings.block,
        made_by="predict",
        kind=KIND,
        voxel_size_nm=volume.voxel_size_nm,
        depends_on={
            "model": model.digest,
            "input": {"path": volume.url, "level": volume.level, "identity": identity(volume)},
            **raw.resampling_of(volume),
            "invert_contrast": raw.invert_contrast,
            "roi": [roi.start, roi.stop],
            "precision": "float32",
            "symmetries": symmetries,
            **validity.facts,
            **({} if levels is None else {"section_levels": digest_of(attribute_of(levels))}),
        },
        attributes=_attributes(settings, model, volume, validity, symmetries, levels) | raw.resampling_of(volume),
        name=KIND,
        translation_nm=_translation_nm(volume, roi),
        channels=(KIND,),
        validity=validity.is_kept,
    )
    check_weights(model.bundle, model.contract.network)
    plan = PredictPlan(
        raw,
        output.path,
        model.bundle,
        roi,
        planned(settings, model.contract, output, roi.start).tile.tile,
        symmetries,
        frozenset(volume.invalid_sections),
        validity,
        settings.skip,
        levels,
        settings.output_dtype,
    )
    return plan, output


def fitted(plan: PredictPlan, settings: PredictSettings, model: FoundModel, output: OutputPlan) -> PredictPlan:
    """The plan with the tile for the workers that are there: what memory they have is known once Ray is connected.

    Raises:
      ValueError: they have too little.
    """
    worker = planned(settings, model.contract, output, plan.roi.start, share_of_node(settings))
    _log.info("tiles of %s: a worker takes at most %s", list(worker.tile.tile), worker.memory)
    if worker.memory.total > worker.budget_bytes:
        _log.warning("that is more than the %.2f GiB it may take: try --tile null", worker.budget_bytes / 2**30)
    return replace(plan, tile=worker.tile.tile)


def levels_for(model: FoundModel, volume: Volume, validity: Validity, read: Read) -> LevelTable | None:
    """Grey levels of the sections that the region's prediction reads; None where the model's rule needs none.

    Raises:
      ValueError: a section has none, or holds NaN.
    """
    if not model.contract.normalisation.needs_levels:
        return None
    # What mirroring reads beyond the first or last section lies within the halo of it, too.
    halo, roi = model.contract.network.arithmetic.halo[0], validity.roi
    reach = range(max(roi.start[0] - halo, 0), min(roi.stop[0] + halo, volume.shape[0]))
    predicted = set(range(roi.start[0], roi.stop[0])) - validity.invalid
    unread = {z for z in reach if predicted.isdisjoint(range(z - halo, z + halo + 1))}
    return volume_levels(volume, reach, read, unread=unread, bare=validity.bare)


def check_contract(model: FoundModel, volume: Volume, *, accept_mismatch: bool) -> None:
    """Refuse a volume that the model was not made for; what is accepted all the same is said.

    Raises:
      ValueError: says what does not fit.
    """
    doubts = check_fit(
        model.contract,
        dtype=volume.dtype,
        axes="".join(volume.axes),
        voxel_size_nm=volume.voxel_size_nm,
        accept_mismatch=accept_mismatch,
    )
    for doubt in doubts:
        _log.warning("accepted although %s", doubt)


def chosen_symmetries(asked: SymmetryCount | None, model: FoundModel, volume: Volume) -> SymmetryCount:
    """How many symmetries to average over: the model's, unless others are asked for, which is said.

    Raises:
      ValueError: they turn sections by 90 degrees, and the model's or the volume's voxels are not square.
    """
    own = model.contract.symmetries
    chosen = own if asked is None else asked
    # They differ where a mismatch was accepted.
    for size in (model.contract.voxel_size_nm, volume.voxel_size_nm):
        if size is not None:
            check_square(chosen, size)
    if chosen != own:
        _log.warning(
            "averaging over symmetries=%d as asked, although the model's threshold was chosen with symmetries=%d and "
            "may not be the best one now",
            chosen,
            own,
        )
    return chosen


def _glance_at_values(volume: Volume, roi: Box, read: Read) -> None:
    """Refuse a volume of NaN before hours of work: a look at its first, middle and last section."""
    middle = (roi.start[0] + roi.stop[0]) // 2
    for z in {roi.start[0], middle, roi.stop[0] - 1} if volume.dtype.kind == "f" else ():
        read(Box((z, *roi.start[1:]), (z + 1, *roi.stop[1:])).clipped(_glance(roi, z)))


def _glance(roi: Box, z: int, extent: int = 1024) -> Box:
    """The middle of one section of the region, of a size that is read at once."""
    middle = [(a + b) // 2 for a, b in zip(roi.start, roi.stop, strict=True)]
    return Box((z, middle[1] - extent // 2, middle[2] - extent // 2), (z + 1, middle[1] + extent, middle[2] + extent))


def _translation_nm(volume: Volume, roi: Box) -> tuple[float, ...] | None:
    """Where the output's voxel 0 lies, in the coordinates of the raw volume; None at its origin."""
    if volume.voxel_size_nm is None or not any(roi.start):
        return volume.translation_nm
    own = volume.translation_nm or (0.0, 0.0, 0.0)
    return tuple(shift + size * a for shift, size, a in zip(own, volume.voxel_size_nm, roi.start, strict=True))


def _attributes(
    settings: PredictSettings,
    model: FoundModel,
    volume: Volume,
    validity: Validity,
    symmetries: SymmetryCount,
    levels: LevelTable | None,
) -> dict[str, Any]:
    roi = validity.roi
    return {
        "polarity": polarity_of(settings.output_dtype),
        **validity.attributes,
        "input": volume.url,
        "input_level": volume.level,
        "invert_contrast": settings.invert_contrast,
        "roi": [list(roi.start), list(roi.stop)],
        "model": {"name": model.name, "digest": model.digest, "training_run_id": model.run_id},
        "threshold": model.contract.threshold,
        "symmetries": symmetries,
        "tile_period": model.contract.network.arithmetic.period,
        "settings": plain(settings),
        **({} if levels is None else {"section_levels": attribute_of(levels)}),
    }


def make_block_worker(plan: PredictPlan) -> Process:
    """In a worker: load the model and open the volumes once; returns the function that does one block."""
    predict_tiles, contract = load_predictor(plan.bundle, plan.symmetries)
    if plan.skip:
        predict_tiles = remembering_flat(predict_tiles)
    volume, output = plan.raw.open(), open_volume(plan.output, writable=True)
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

    process = partial(process_block, plan, BlockOutput.open(output, plan.validity), turn.ended_after(probability_of))
    return partial(in_memory, memory, with_tiles(process, plan, contract.network.arithmetic, memory))


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
    output: BlockOutput,
    probability_of: Callable[[Box, NDArray[np.bool_] | None], NDArray[np.float32]],
    item: tuple[int, Box],
) -> dict[str, Any]:
    """Predict one block and write it; returns the ledger's row.

    Args:
      plan: the checked prediction.
      output: the probability volume, and its validity.
      probability_of: float32 probability of a box in the raw volume's voxels, where it is wanted.
      item: the block's index, and its box in the output's voxels.
    """
    _, box = item
    watch = Stopwatch()
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


def _tell_origins(run: Tracker, output: OutputPlan, model: FoundModel) -> None:
    """Link the run with what it reads and uses; a job that fails or still runs can be followed, too."""
    read = output.depends_on["input"]
    run.dataset(read["path"], read["identity"], "prediction")
    run.uses_model(model.name)
    run.document("output.json", {"output": str(output.path), "model": model.name, "model_digest": model.digest})
    if model.run_id:
        run.link("trained_by", model.run_id)


def _record(reports: JobReports, plan: PredictPlan, report: BlockReport) -> None:
    update_attributes(plan.output, complete=True)
    if report.computed:
        reports.summary(report.metrics)
