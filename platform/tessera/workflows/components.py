"""Cells as components of what is not membrane: of sections or of the volume, stitched over blocks into one numbering.

    faces    block --> threshold --> local components --> faces on disk, counts in the ledger
    seams    faces of neighbours --> what touches --> union-find over what touches faces --> numbering (stitching.py)
    labels   block --> the same local components --> final uint64 ids --> one shard each

Labelling a block twice is cheaper than writing and reading its local labels once. Every pass resumes from a ledger of
its own, and a kill loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.labels.components import label_block
from tessera.labels.merge import BlockIds, apply_lookup
from tessera.labels.seams import Connectivity, Faces, Offset, faces_of, neighbour_offsets, seam_edges
from tessera.settings.segment import SegmentSettings
from tessera.storage.identity import identity
from tessera.storage.lease import Lease
from tessera.storage.locations import Place
from tessera.storage.validity import ReadValid, valid_reader
from tessera.storage.volumes import Volume, open_volume, update_attributes
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job
from tessera.workflows.membranes import CELLS, SECTION_CELLS, checked_threshold, is_cell
from tessera.workflows.outputs import OutputPlan, plan_output
from tessera.workflows.plain import plain
from tessera.workflows.reporting import JobReports
from tessera.workflows.stitching import FACES, RIM, Arrays, SeamRule, make_face_checker, save_faces, stitched


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


def run_passes(
    settings: SegmentSettings, plan: SegmentPlan, output: OutputPlan, reports: JobReports, lease: Lease
) -> int:
    """All passes; returns the number of cells."""
    faces = run_block_job(
        output,
        partial(_make_face_worker, plan),
        settings,
        stage=FACES,
        tell=reports.over_time(FACES),
        lease=lease,
        make_checker=partial(make_face_checker, plan.output),
    )
    rule = SeamRule(neighbour_offsets(plan.connectivity), partial(_touching, plan.connectivity))
    numbering = stitched(output, rule, settings, reports, lease)
    labels = run_block_job(
        output,
        partial(_make_label_worker, plan),
        settings,
        item=lambda index: (output.grid.box(index), numbering.of(index)),
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
    threshold, invalid = checked_threshold(settings, volume), volume.invalid_sections
    connectivity = connectivity_of(settings.connectivity)
    shown = {"invalid_sections": sorted(invalid), "input": volume.url, "threshold": threshold}
    output = plan_output(
        settings,
        settings.output,
        volume.shape,
        np.uint64,
        block=settings.block,
        made_by="segment",
        kind=SECTION_CELLS if connectivity.per_section else CELLS,
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
    return SegmentPlan(volume.place, output.path, threshold, connectivity), output


def connectivity_of(neighbours: int) -> Connectivity:
    """4 or 8 within sections; 6, 18 or 26 through the volume."""
    return Connectivity(f"{'section' if neighbours in (4, 8) else 'volume'}-{neighbours}")


def cells_of(plan: SegmentPlan, volume: Volume, valid_of: ReadValid, box: Box) -> tuple[NDArray[np.uint32], int]:
    """Local cells of one block: the same ids in all passes and on every machine."""
    mask = is_cell(volume.read(box), plan.threshold)
    # What was not predicted holds probability 0, which is not "cell".
    mask &= valid_of(box)
    return label_block(mask, plan.connectivity)


def _touching(connectivity: Connectivity, own: Arrays, other: Arrays, offset: Offset) -> NDArray[np.uint64]:
    return seam_edges(Faces.from_arrays(own), Faces.from_arrays(other), offset, connectivity)


def _make_face_worker(plan: SegmentPlan) -> Process:
    volume = open_volume(plan.probability)
    valid_of = valid_reader(volume)

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        index, box = item
        watch = Stopwatch()
        labels, count = cells_of(plan, volume, valid_of, box)
        faces = faces_of(labels, plan.connectivity)
        rim = faces.rim()
        row = watch.lap("compute")
        sum_ = save_faces(plan.output, index, faces.to_arrays(), rim)
        return {**row, **watch.lap("write"), "checksum": sum_, "detail": {"labels": count, RIM: len(rim)}}

    return process


def _make_label_worker(plan: SegmentPlan) -> Process:
    volume, output = open_volume(plan.probability), open_volume(plan.output, writable=True)
    valid_of = valid_reader(volume)

    def process(item: tuple[Box, BlockIds]) -> dict[str, Any]:
        box, ids = item
        watch = Stopwatch()
        labels, count = cells_of(plan, volume, valid_of, box)
        final = apply_lookup(labels, ids.lookup(count, faces_of(labels, plan.connectivity).rim()))
        row = watch.lap("compute")
        output.write(box, final)
        return {**row, **watch.lap("write"), "bytes": final.nbytes, "checksum": checksum(final)}

    return process
