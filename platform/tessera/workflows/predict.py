"""Raw volume to membrane probability, block by block: read, mirror, normalise, predict, write.

    volume --core + halo--> mirror at the true edge --> normalise --> tiles --> network --> uint8 --> whole shards

The halo is derived from the model's layers. What is not valid (validity.py) is neither predicted nor called cell: it
holds 0 and is marked in the output.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tessera.engine.tasks import MakeWorker
from tessera.geometry.boxes import Box
from tessera.images.levels import LevelTable
from tessera.images.quantise import polarity_of
from tessera.images.symmetries import SymmetryCount, check_square
from tessera.model.bundle import check_fit
from tessera.model.weights_file import check_weights
from tessera.settings.places import home
from tessera.settings.predict import PredictSettings
from tessera.storage.identity import identity
from tessera.storage.lease import Lease
from tessera.storage.locations import Place
from tessera.storage.volumes import Volume, update_attributes
from tessera.tracking.runs import Tracker, check_answers, check_tracking, tracking_uri
from tessera.workflows.audit import audit_output
from tessera.workflows.block_jobs import BlockReport, run_block_job, session, workers_ahead
from tessera.workflows.levels import attribute_of, volume_levels
from tessera.workflows.models import FoundModel, find_model
from tessera.workflows.outputs import OutputPlan, claimed_output, digest_of, plan_output, tracked_output
from tessera.workflows.plain import plain
from tessera.workflows.predict_blocks import PredictPlan, make_block_worker, squeezed
from tessera.workflows.preflight import log_forecast
from tessera.workflows.raw import Read, find_raw, region_of
from tessera.workflows.reporting import JobReports, reporting
from tessera.workflows.validity import Validity, plan_validity, skipping
from tessera.workflows.worker_plan import planned, share_of_node

_log = logging.getLogger(__name__)

KIND = "membrane probability"


def predict(settings: PredictSettings) -> Place:
    """Run the workflow; returns the output's path or URL.

    Raises:
      ValueError, OSError: something does not fit, before any work is done.
      BlocksFailedError: some blocks were given up, after the rest was done.
      AuditFailedError: seams show in what was predicted; it stays.
    """
    uri = tracking_uri(settings.tracking.uri, home())
    check_answers(uri)
    model = find_model(settings.model, settings.tracking.uri)
    plan, output = plan_prediction(settings, model)
    log_forecast(output)
    tags = {"tessera.model": model.name}
    with session(settings):
        plan = fitted(plan, settings, model, output)
        make_worker = partial(make_block_worker, plan)
        with workers_ahead(make_worker, settings, len(output.grid)) as ahead:
            check_tracking(uri)  # imports MLflow, which takes as long as what the workers import meanwhile
            with (
                claimed_output(output, settings) as lease,
                tracked_output(output, settings, tags) as run,
                reporting(run, output.path) as reports,
            ):
                _tell_origins(run, output, model)
                report = _run_blocks(plan, output, settings, reports, lease, make_worker, ahead)
                _record(reports, plan, report)
                if settings.audit:
                    audit_output(output.path, settings, run, lease)
    return output.path


def _run_blocks(
    plan: PredictPlan,
    output: OutputPlan,
    settings: PredictSettings,
    reports: JobReports,
    lease: Lease,
    make_worker: MakeWorker,
    ahead: Sequence[Any],
) -> BlockReport:
    settled = skipping(plan.validity, output.grid, output.dtype) if plan.skip else None
    return run_block_job(
        output,
        make_worker,
        settings,
        squeeze=squeezed,
        tell=reports.over_time(),
        settled=settled,
        lease=lease,
        ahead=ahead,
    )


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
        model.digest,
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
