"""`--dry_run true`: what predict, segment, clean and ingest would do, after a sample of it where that takes seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.quantise import encode
from tessera.model.predictor import load_predictor, predict_box
from tessera.settings.clean import CleanSettings
from tessera.settings.ingest import IngestSettings
from tessera.settings.places import home, input_path, local_input_path
from tessera.settings.predict import PredictSettings
from tessera.settings.segment import SegmentSettings
from tessera.storage.hdf5 import is_hdf5, open_hdf5
from tessera.storage.room import stored_share
from tessera.storage.validity import valid_reader
from tessera.storage.voxels import Volume
from tessera.tracking.runs import check_tracking, tracking_uri
from tessera.workflows.clean import plan_cleaning
from tessera.workflows.components import SegmentPlan, cells_of, plan_segmentation
from tessera.workflows.fragments import FragmentsPlan, cut_block
from tessera.workflows.ingest import open_source, plan_hdf5, plan_volume
from tessera.workflows.models import find_model
from tessera.workflows.outputs import OutputPlan, open_finished
from tessera.workflows.predict import plan_prediction
from tessera.workflows.predict_blocks import PredictPlan
from tessera.workflows.preflight import Sample, forecast, told
from tessera.workflows.watershed import plan_watershed
from tessera.workflows.worker_plan import planned

_TIMES = 2


def dry_predict(settings: PredictSettings) -> str:
    """What `predict` would do; a tile goes through the model, on all cores of this machine.

    Raises:
      ValueError, OSError: it could not work.
    """
    _check_server(settings.tracking.uri)
    model = find_model(settings.model, settings.tracking.uri)
    plan, output = plan_prediction(settings, model)
    volume = plan.raw.open()
    found = forecast(
        output,
        settings,
        input_itemsize=volume.dtype.itemsize,
        halo=model.contract.network.arithmetic.halo,
        memory_bytes=planned(settings, model.contract, output, plan.roi.start).memory.total,
        sample=partial(predicted_tile, plan, volume),
    )
    return told(found, settings)


def predicted_tile(plan: PredictPlan, volume: Volume) -> Sample:
    """One tile from the middle of the region, read, predicted and compressed; the first pass, a slow one, is left out.

    Args:
      plan: the checked prediction.
      volume: the raw volume, open.
    """
    predict_tiles, contract = load_predictor(plan.bundle, plan.symmetries, plan.digest)
    core, read, missing = middle(plan.roi, plan.tile), plan.raw.reader(volume), frozenset(volume.invalid_sections)

    def work() -> NDArray[Any]:
        probability = predict_box(predict_tiles, read, volume.shape, core, plan.tile, contract, plan.levels, missing)
        return encode(probability, plan.dtype)

    return _sample(work)


def dry_segment(settings: SegmentSettings) -> str:
    """What `segment` would do; one block is cut into cells, or fragments.

    Raises:
      ValueError, OSError: it could not work.
    """
    _check_server(settings.tracking.uri)
    volume = open_finished(input_path(settings.volume, anonymous=settings.storage.anonymous))
    if settings.method == "watershed":
        whole = plan_watershed(settings, volume)
        sample = partial(_cut_fragments, whole.fragments, volume, whole.made)
        size, halo = volume.dtype.itemsize, whole.fragments.halo
        return told(forecast(whole.output, settings, input_itemsize=size, halo=halo, sample=sample), settings)
    plan, output = plan_segmentation(settings, volume)
    found = forecast(
        output, settings, input_itemsize=2 * volume.dtype.itemsize, sample=partial(_cut_block, plan, volume, output)
    )
    return told(found, settings)


def _cut_block(plan: SegmentPlan, volume: Volume, output: OutputPlan) -> Sample:
    def work() -> NDArray[Any]:
        for _ in range(2):  # once in each pass: for its faces, and for its labels
            labels, _ = cells_of(plan, volume, valid_reader(volume), middle(Box.whole(output.shape), output.block))
        return labels.astype(np.uint64)

    return _sample(work)


def _cut_fragments(plan: FragmentsPlan, volume: Volume, output: OutputPlan) -> Sample:
    """A block's watershed, by far the longest of what is done with it; once is enough to know."""
    start = time.perf_counter()
    local, _ = cut_block(plan, volume, valid_reader(volume), middle(Box.whole(output.shape), output.block))
    labels = local.astype(np.uint64)
    return Sample(labels.size, time.perf_counter() - start, stored_share(labels))


def dry_clean(settings: CleanSettings) -> str:
    """What `clean` would do; it is read up to three times, and no time is told.

    Raises:
      ValueError, OSError: it could not work.
    """
    _check_server(settings.tracking.uri)
    volume = open_finished(input_path(settings.volume, anonymous=settings.storage.anonymous))
    _, output = plan_cleaning(settings, volume)
    return told(forecast(output, settings, input_itemsize=3 * volume.dtype.itemsize), settings)


def dry_ingest(settings: IngestSettings) -> str:
    """What `ingest` would do; nothing is decoded, so no time is told.

    Raises:
      ValueError, OSError: it could not work.
    """
    path = local_input_path(settings.source)
    if is_hdf5(path):
        array = open_hdf5(path, kind=settings.kind, dataset=settings.dataset, invert=settings.invert)
        output = plan_hdf5(settings, array)
    else:
        output = plan_volume(settings, open_source(settings))
    return told(forecast(output, settings, input_itemsize=output.itemsize), settings)


def middle(whole: Box, most: tuple[int, ...]) -> Box:
    """The box in the middle of another one, of at most these extents.

    >>> middle(Box((0, 10), (4, 30)), (8, 10))
    Box(start=(0, 15), stop=(4, 25))
    """
    extents = tuple(min(n, size) for n, size in zip(most, whole.shape, strict=True))
    start = tuple(a + (size - n) // 2 for a, size, n in zip(whole.start, whole.shape, extents, strict=True))
    return Box(start, tuple(a + n for a, n in zip(start, extents, strict=True)))


def _sample(work: Callable[[], NDArray[Any]]) -> Sample:
    voxels = work()
    start = time.perf_counter()
    for _ in range(_TIMES):
        work()
    return Sample(voxels.size, (time.perf_counter() - start) / _TIMES, stored_share(voxels))


def _check_server(uri: str | None) -> None:
    """A server that does not answer would stop the real job; a database of one's own is not made by asking."""
    chosen = tracking_uri(uri, home())
    if chosen.startswith("http"):
        check_tracking(chosen)
