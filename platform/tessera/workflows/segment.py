"""Membrane probability to cells: components of every section, stitched over blocks into one numbering.

    pass 1  block --> threshold --> local components --> faces on disk, count in the ledger
    driver  faces of neighbours --> seam edges --> union-find --> numbering
    pass 2  block --> the same local components --> final uint64 ids --> one shard each

Labelling a block twice is cheaper than writing and reading its local labels once; both passes resume from their own
ledgers, and a kill loses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.images.quantise import STORED_DTYPES, decode
from tessera.labels.components import label_block
from tessera.labels.merge import Numbering, apply_lookup, consecutive_numbering, provisional_edges, provisional_offsets
from tessera.labels.seams import Connectivity, Faces, faces_of, neighbour_offsets, seam_edges
from tessera.settings.places import home, input_path
from tessera.settings.segment import SegmentSettings
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.identity import identity
from tessera.storage.lease import Lease
from tessera.storage.ledger import ledger_path, read_rows
from tessera.storage.locations import Place
from tessera.storage.validity import ReadValid, valid_reader
from tessera.storage.volumes import Volume, open_volume, update_attributes
from tessera.tracking.runs import check_tracking, tracking_uri
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job, session
from tessera.workflows.outputs import OutputPlan, claimed_output, digest_of, open_finished, plan_output, tracked_output
from tessera.workflows.plain import plain
from tessera.workflows.predict import KIND as PROBABILITY
from tessera.workflows.preflight import log_forecast
from tessera.workflows.reporting import JobReports, reporting

_log = logging.getLogger(__name__)

KIND, FACES = "cells per section", "faces"


@dataclass(frozen=True)
class SegmentPlan:
    """A checked segmentation: everything a worker needs, as plain values.

    Attributes:
      probability: the probability volume's path.
      output: the label volume's path.
      threshold: cell probability above which a pixel is cell.
      connectivity: which pixels touch.
    """

    probability: Place
    output: Place
    threshold: float
    connectivity: Connectivity


def segment(settings: SegmentSettings) -> Place:
    """Run the workflow; returns the label volume's path.

    Raises:
      ValueError, OSError: something does not fit, before any work is done.
      BlocksFailedError: some blocks were given up, after the rest was done.
    """
    check_tracking(tracking_uri(settings.tracking.uri, home()))
    volume = open_finished(input_path(settings.volume, anonymous=settings.storage.anonymous))
    plan, output = plan_segmentation(settings, volume)
    log_forecast(output)
    with (
        session(settings),
        claimed_output(output, settings) as lease,
        tracked_output(output, settings, {}) as run,
        reporting(run, output.path) as reports,
    ):
        if volume.attributes.get("run_id"):
            run.link("predicted_by", volume.attributes["run_id"])
        cells = _run_passes(settings, plan, output, reports, lease)
    _log.info("%s: %d cells", output.path, cells)
    return output.path


def _run_passes(
    settings: SegmentSettings, plan: SegmentPlan, output: OutputPlan, reports: JobReports, lease: Lease
) -> int:
    """Both passes and the numbering between them; returns the number of cells."""
    faces = run_block_job(
        output,
        partial(_make_face_worker, plan),
        settings,
        stage=FACES,
        tell=reports.over_time(FACES),
        lease=lease,
        make_checker=partial(_make_face_checker, plan),
    )
    grid = output.grid
    numbering = number_cells(plan, grid)
    labels = run_block_job(
        output,
        partial(_make_label_worker, plan),
        settings,
        item=lambda index: (grid.box(index), numbering.lookup(index)),
        tell=reports.over_time(),
        lease=lease,
    )
    update_attributes(output.path, complete=True, cells=numbering.total)
    if labels.computed:
        reports.summary(labels.metrics | {"cells": numbering.total, "faces_seconds": faces.seconds})
    return numbering.total


def plan_segmentation(settings: SegmentSettings, volume: Volume) -> tuple[SegmentPlan, OutputPlan]:
    """Check everything that can be checked before work starts; nothing is touched.

    Raises:
      ValueError: the volume is no membrane probability, no threshold is known, or the block does not fit the shards.
    """
    threshold, invalid = _threshold(settings, volume), volume.invalid_sections
    shown = {"invalid_sections": sorted(invalid), "input": volume.url, "threshold": threshold}
    output = plan_output(
        settings,
        settings.output,
        volume.shape,
        np.uint64,
        block=settings.block,
        made_by="segment",
        kind=KIND,
        voxel_size_nm=volume.voxel_size_nm,
        depends_on={
            "input": {"path": volume.url, "identity": identity(volume)},
            "threshold": threshold,
            "connectivity": settings.connectivity,
        },
        attributes=shown | {"settings": plain(settings)},
        name="cells",
        translation_nm=volume.translation_nm,
    )
    connectivity = Connectivity(f"section-{settings.connectivity}")
    return SegmentPlan(volume.place, output.path, threshold, connectivity), output


def _threshold(settings: SegmentSettings, volume: Volume) -> float:
    if volume.attributes.get("kind") != PROBABILITY or volume.dtype.name not in STORED_DTYPES:
        raise ValueError(
            f"{volume.url} is not membrane probability as `tessera predict` writes it ({', '.join(STORED_DTYPES)}): "
            f"its {volume.dtype} grey values would be cut into cells. Run tessera predict on it first."
        )
    if len(volume.shape) != 3:
        raise ValueError(f"{volume.url} has shape {volume.shape}: cells are cut in z, y, x. Save one channel of it.")
    threshold = settings.threshold if settings.threshold is not None else volume.attributes.get("threshold")
    if threshold is None:
        raise ValueError(f"no threshold is known for {volume.url}: its model chose none. Try --threshold 0.5.")
    return float(threshold)


def cells_of(plan: SegmentPlan, volume: Volume, valid_of: ReadValid, box: Box) -> tuple[NDArray[np.uint32], int]:
    """Local cells of one block: the same ids in both passes and on every machine."""
    cell = 1.0 - decode(volume.read(box))
    mask = cell > np.float32(plan.threshold)
    # What was not predicted holds probability 0, which is not "cell".
    mask &= valid_of(box)
    return label_block(mask, plan.connectivity)


def _make_face_worker(plan: SegmentPlan) -> Process:
    volume = open_volume(plan.probability)
    valid_of = valid_reader(volume)

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        index, box = item
        watch = Stopwatch()
        labels, count = cells_of(plan, volume, valid_of, box)
        row = watch.lap("compute")
        faces = faces_of(labels, plan.connectivity).to_arrays()
        save_arrays(_faces_path(plan.output, index), faces)
        return {**row, **watch.lap("write"), "checksum": _sum_of(faces), "detail": {"labels": count}}

    return process


def _make_face_checker(plan: SegmentPlan) -> Process:
    return lambda item: {"checksum": _sum_of(load_arrays(_faces_path(plan.output, item[0])))}


def _sum_of(faces: Mapping[str, NDArray[Any]]) -> str:
    return digest_of({name: checksum(array) for name, array in faces.items()})[:16]


def _make_label_worker(plan: SegmentPlan) -> Process:
    volume, output = open_volume(plan.probability), open_volume(plan.output, writable=True)
    valid_of = valid_reader(volume)

    def process(item: tuple[Box, NDArray[np.uint64]]) -> dict[str, Any]:
        box, lookup = item
        watch = Stopwatch()
        labels, _ = cells_of(plan, volume, valid_of, box)
        final = apply_lookup(labels, lookup)
        row = watch.lap("compute")
        output.write(box, final)
        return {**row, **watch.lap("write"), "bytes": final.nbytes, "checksum": checksum(final)}

    return process


def _faces_path(output: Place, index: int) -> Place:
    return ledger_path(output) / FACES / f"faces-{index:09d}.npz"


def number_cells(plan: SegmentPlan, grid: BlockGrid) -> Numbering:
    """Join what touches across block faces and number the volume's cells 1..N."""
    counts = [0] * len(grid)
    for row in read_rows(plan.output, stage=FACES):
        if row.status == "done":
            counts[row.block] = row.values["labels"]
    offsets = provisional_offsets(counts)
    edges = [provisional_edges(pairs, offsets[a], offsets[b]) for a, b, pairs in _seams(plan, grid)]
    return consecutive_numbering(counts, np.concatenate([np.empty((0, 2), np.uint64), *edges]))


def _seams(plan: SegmentPlan, grid: BlockGrid) -> Iterator[tuple[int, int, NDArray[np.uint64]]]:
    """(block, neighbour, pairs of local ids that are one cell) for every two blocks that touch."""
    for index in range(len(grid)):
        neighbours = [(offset, grid.neighbour(index, offset)) for offset in neighbour_offsets(plan.connectivity)]
        present = [(offset, other) for offset, other in neighbours if other is not None]
        if present:
            own = _load_faces(plan.output, index)
            for offset, other in present:
                yield index, other, seam_edges(own, _load_faces(plan.output, other), offset, plan.connectivity)


def _load_faces(output: Place, index: int) -> Faces:
    return Faces.from_arrays(load_arrays(_faces_path(output, index)))
