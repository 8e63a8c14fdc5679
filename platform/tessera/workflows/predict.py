"""Raw volume to membrane probability, block by block: read, mirror, normalise, predict, write.

    volume --core + halo--> mirror at the true edge --> normalise --> tiles --> network --> uint8 --> whole shards

The halo is derived from the model's layers. Sections marked invalid are neither predicted nor called cell: they hold 0
and stay marked in the output.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
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
from tessera.model.memory import TileMemory, halved
from tessera.model.predictor import load_predictor, predict_box
from tessera.settings.places import home
from tessera.settings.predict import PredictSettings, parse_roi
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
from tessera.workflows.raw import RawSource, Read, find_raw
from tessera.workflows.reporting import JobReports, reporting

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
      invalid: invalid sections, in the raw volume's numbering.
      levels: grey levels of the sections that are read, in the same numbering, where the model's rule needs them.
      dtype: in which probability is stored.
    """

    raw: RawSource
    output: Place
    bundle: Path
    roi: Box
    tile: tuple[int, int, int]
    symmetries: SymmetryCount
    invalid: frozenset[int]
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
        claim_output(output, overwrite=settings.overwrite)
        tags = {"tessera.model": model.name}
        with tracked_output(output, settings, tags) as run, reporting(run, output.path) as reports:
            _tell_origins(run, output, model)
            make_worker, tell = partial(make_block_worker, plan), reports.over_time()
            report = run_block_job(output, make_worker, settings, squeeze=squeezed, tell=tell)
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
    roi = parse_roi(settings.roi, volume.shape)
    _glance_at_values(volume, roi, read)
    invalid = frozenset(volume.invalid_sections)
    levels = levels_for(model, volume, roi, read)
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
            "invert_contrast": raw.invert_contrast,
            "roi": [roi.start, roi.stop],
            "precision": "float32",
            "symmetries": symmetries,
            **({} if levels is None else {"section_levels": digest_of(attribute_of(levels))}),
        },
        attributes=_attributes(settings, model, volume, roi, symmetries, levels),
        name=KIND,
        translation_nm=_translation_nm(volume, roi),
        channels=(KIND,),
    )
    bundle, tile = model.bundle, settings.tile
    dtype = settings.output_dtype
    return PredictPlan(raw, output.path, bundle, roi, tile, symmetries, invalid, levels, dtype), output


def levels_for(model: FoundModel, volume: Volume, roi: Box, read: Read) -> LevelTable | None:
    """Grey levels of the sections that the region's prediction reads; None where the model's rule needs none.

    Raises:
      ValueError: a section has none, or holds NaN.
    """
    if not model.contract.normalisation.needs_levels:
        return None
    # What mirroring reads beyond the first or last section lies within the halo of it, too.
    halo = model.contract.network.arithmetic.halo[0]
    reach = range(max(roi.start[0] - halo, 0), min(roi.stop[0] + halo, volume.shape[0]))
    return volume_levels(volume, reach, read)


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
    roi: Box,
    symmetries: SymmetryCount,
    levels: LevelTable | None,
) -> dict[str, Any]:
    inside = range(roi.start[0], roi.stop[0])
    return {
        "polarity": polarity_of(settings.output_dtype),
        "invalid_sections": sorted(z - roi.start[0] for z in volume.invalid_sections if z in inside),
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
    volume, output = plan.raw.open(), open_volume(plan.output, writable=True)
    read = plan.raw.reader(volume)
    # One pass at a time: the network's own threads fill the cores, while other threads read and write.
    lock = threading.Lock()

    def one_at_a_time(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        with lock:
            return predict_tiles(tiles)

    memory = TileMemory(plan.tile, [axis.period for axis in contract.network.arithmetic.axes])

    def probability_of(core: Box) -> NDArray[np.float32]:
        return memory.fit(
            lambda tile: predict_box(one_at_a_time, read, volume.shape, core, tile, contract, plan.levels, plan.invalid)
        )

    process = with_tiles(
        partial(process_block, plan, output, probability_of), plan, contract.network.arithmetic, memory
    )
    return partial(in_memory, memory, process)


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
    output: Volume,
    probability_of: Callable[[Box], NDArray[np.float32]],
    item: tuple[int, Box],
) -> dict[str, Any]:
    """Predict one block and write it; returns the ledger's row.

    Args:
      plan: the checked prediction.
      output: the probability volume.
      probability_of: float32 probability of a box in the raw volume's voxels.
      item: the block's index, and its box in the output's voxels.
    """
    _, box = item
    watch = Stopwatch()
    core = box.shifted(plan.roi.start)
    valid = np.array([z not in plan.invalid for z in range(core.start[0], core.stop[0])])
    probability = probability_of(core) if valid.any() else np.zeros(core.shape, np.float32)
    probability[~valid] = 0
    row = watch.lap("compute")
    voxels = encode(probability, plan.dtype)
    output.write(box, voxels)
    return {**row, **watch.lap("write"), "bytes": voxels.nbytes, "checksum": checksum(voxels)}


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
