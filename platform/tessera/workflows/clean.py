"""Small objects out, holes filled: from a label volume to a new one, exact over blocks.

    objects  block --> sizes of its objects                     driver: which are too small
    faces    block without these --> background pieces; of those at its faces, what they touch
    seams    faces of neighbours --> pieces joined              driver: which of these are holes, and whose
    labels   block without these --> the same pieces --> holes take their object's id --> one shard each

A piece that touches no face of its block is whole, and judged there. Pieces are found twice, as `segment` labels twice:
it is cheaper than writing and reading them once. Each pass resumes from its ledger. Workers hold the removed ids, 8
bytes each, the driver the pieces at faces, some 60 bytes each.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.labels.holes import (
    Surroundings,
    background_connectivity,
    background_pieces,
    cleared,
    no_surroundings,
    surroundings_of,
)
from tessera.labels.merge import Ids, Numbering
from tessera.labels.objects import ObjectStats, merge_stats
from tessera.labels.seams import Connectivity, Faces, Offset, faces_of, neighbour_offsets, seam_edges
from tessera.settings.clean import CleanSettings
from tessera.settings.places import home, input_path
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.identity import identity
from tessera.storage.lease import Lease
from tessera.storage.ledger import ledger_path, read_rows
from tessera.storage.locations import Place
from tessera.storage.validity import ReadValid, valid_reader
from tessera.storage.volumes import Volume, open_volume, update_attributes
from tessera.tracking.runs import check_tracking, tracking_uri
from tessera.workflows.array_stages import added_up, run_stage, stage_arrays
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job, session
from tessera.workflows.objects import STAGE as SIZES
from tessera.workflows.objects import check_ids, make_lister
from tessera.workflows.outputs import OutputPlan, claimed_output, open_finished, plan_output, tracked_output
from tessera.workflows.plain import plain
from tessera.workflows.preflight import log_forecast
from tessera.workflows.reporting import JobReports, reporting
from tessera.workflows.scene import predicted_from
from tessera.workflows.stitching import (
    FACES,
    RIM,
    Arrays,
    SeamRule,
    load_faces,
    make_face_checker,
    save_faces,
    stitched,
)

_log = logging.getLogger(__name__)

INNER = "inner"
_COUNTED = ("holes_filled", "hole_voxels")


@dataclass(frozen=True)
class CleanPlan:
    """A checked job: everything a worker needs, as plain values.

    Attributes:
      labels: the volume of ids.
      output: the cleaned one.
      least_voxels: of an object that is kept.
      connectivity: of background; None where holes stay.
      predicted: what tells which voxels were predicted; None where all were.
    """

    labels: Place
    output: Place
    least_voxels: int
    connectivity: Connectivity | None
    predicted: Place | None


def clean(settings: CleanSettings) -> Place:
    """Run the workflow; returns the cleaned volume's place.

    Raises:
      ValueError, OSError: something does not fit, before any work is done.
      BlocksFailedError: some blocks were given up, after the rest was done.
    """
    check_tracking(tracking_uri(settings.tracking.uri, home()))
    volume = open_finished(input_path(settings.volume, anonymous=settings.storage.anonymous))
    plan, output = plan_cleaning(settings, volume)
    log_forecast(output)
    with (
        session(settings),
        claimed_output(output, settings) as lease,
        tracked_output(output, settings, {}) as run,
        reporting(run, output.path) as reports,
    ):
        if volume.attributes.get("run_id"):
            run.link("segmented_by", volume.attributes["run_id"])
        found = _run_passes(settings, plan, output, reports, lease)
    _log.info("%s: %s", output.path, ", ".join(f"{name} {count:,}" for name, count in found.items()))
    return output.path


def plan_cleaning(settings: CleanSettings, volume: Volume) -> tuple[CleanPlan, OutputPlan]:
    """Check everything that can be checked before work starts; nothing is touched.

    Raises:
      ValueError: the volume holds no ids, or the block does not fit the shards.
    """
    check_ids(volume)
    predicted = predicted_from(volume)
    rule = {"least_voxels": settings.least_voxels, "fill_holes": settings.fill_holes}
    shown = {"input": volume.url, "invalid_sections": sorted(volume.invalid_sections), **rule}
    output = plan_output(
        settings,
        settings.output,
        volume.shape,
        volume.dtype,
        block=settings.block,
        made_by="clean",
        kind=volume.attributes.get("kind", "labels"),
        voxel_size_nm=volume.voxel_size_nm,
        depends_on={
            "input": {"path": volume.url, "identity": identity(volume)},
            "predicted": None if predicted is None else identity(predicted),
            **rule,
        },
        attributes={**shown, "settings": plain(settings)},
        name="cells",
        translation_nm=volume.translation_nm,
    )
    fill = settings.fill_holes
    connectivity = None if fill == "none" else background_connectivity(per_section=fill == "section")
    place = None if predicted is None else predicted.place
    return CleanPlan(volume.place, output.path, settings.least_voxels, connectivity, place), output


def _run_passes(
    settings: CleanSettings, plan: CleanPlan, output: OutputPlan, reports: JobReports, lease: Lease
) -> dict[str, int]:
    found: dict[str, int] = {}
    if plan.least_voxels > 1:
        found |= _find_small(settings, plan, output, lease)
    filling = None if plan.connectivity is None else _find_holes(settings, plan, output, reports, lease)
    found |= {} if filling is None else filling.counts
    done = run_block_job(
        output,
        partial(make_writer, plan),
        settings,
        item=lambda index: (index, output.grid.box(index), None if filling is None else filling.of(index)),
        tell=reports.over_time(),
        lease=lease,
    )
    update_attributes(output.path, complete=True, **found)
    if done.computed:
        reports.summary(done.metrics | {name: float(count) for name, count in found.items()})
    return found


# Small objects


def _find_small(settings: CleanSettings, plan: CleanPlan, output: OutputPlan, lease: Lease) -> dict[str, int]:
    """Find the objects that are too small, and leave their ids where workers find them."""
    run_stage(output, SIZES, partial(make_lister, plan.labels), settings, lease=lease)
    blocks = stage_arrays(output.path, SIZES, range(len(output.grid)))
    objects = added_up(map(ObjectStats.from_arrays, blocks), merge_stats)
    small = objects.voxels < plan.least_voxels
    save_arrays(_removed_path(plan), {"ids": objects.ids[small]})
    return {"objects_removed": int(small.sum()), "objects_left": int((~small).sum())}


def _removed_path(plan: CleanPlan) -> Place:
    return ledger_path(plan.output) / "removed.npz"


def _removed(plan: CleanPlan) -> Ids:
    ids: Ids = load_arrays(_removed_path(plan))["ids"] if plan.least_voxels > 1 else np.empty(0, np.uint64)
    return ids


# Holes


@dataclass(frozen=True)
class Filling:
    """Which pieces of background that touch block faces are holes, and of what.

    Attributes:
      starts: int64, (blocks + 1,): such pieces before each block.
      fill: uint64, (pieces,): the object whose hole each is a part of, 0 where it is none.
      counts: what is filled, in all.
    """

    starts: NDArray[np.int64]
    fill: Ids
    counts: dict[str, int]

    def of(self, block: int) -> Ids:
        """The share of one block."""
        return self.fill[self.starts[block] : self.starts[block + 1]].copy()


def _find_holes(
    settings: CleanSettings, plan: CleanPlan, output: OutputPlan, reports: JobReports, lease: Lease
) -> Filling:
    run_block_job(
        output,
        partial(make_finder, plan),
        settings,
        stage=FACES,
        tell=reports.over_time(FACES),
        lease=lease,
        make_checker=partial(make_face_checker, plan.output),
    )
    connectivity = plan.connectivity
    assert connectivity is not None
    rule = SeamRule(neighbour_offsets(connectivity), partial(_touching, connectivity))
    return joined_holes(output, stitched(output, rule, settings, reports, lease))


def joined_holes(output: OutputPlan, numbering: Numbering) -> Filling:
    """Put together what the pieces of all blocks border on, and tell which are holes.

    Args:
      output: its pieces are found.
      numbering: says which pieces that touch faces are one.
    """
    wholes, whole_of = np.unique(numbering.finals, return_inverse=True)
    total = no_surroundings(len(wholes))
    for block in range(numbering.blocks):
        mine = whole_of[numbering.starts[block] : numbering.starts[block + 1]]
        Surroundings.from_arrays(load_faces(output.path, block)).gather_into(total, np.append(0, mine + 1))
    holes = total.fill > 0
    inner = np.zeros((numbering.blocks, len(_COUNTED)), np.int64)
    for row in read_rows(output.path, stage=FACES):
        if row.status == "done":
            inner[row.block] = [row.values[name] for name in _COUNTED]
    filled = inner.sum(axis=0) + np.array([holes.sum(), total.voxels[holes].sum()])
    return Filling(numbering.starts, total.fill[whole_of + 1], dict(zip(_COUNTED, filled.tolist(), strict=True)))


def _touching(connectivity: Connectivity, own: Arrays, other: Arrays, offset: Offset) -> NDArray[np.uint64]:
    return seam_edges(Faces.from_arrays(own), Faces.from_arrays(other), offset, connectivity)


def make_finder(plan: CleanPlan) -> Process:
    """In a worker: open the volumes; returns the function that finds a block's background and what it touches."""
    volume, removed, valid = open_volume(plan.labels), _removed(plan), valid_of(plan)
    connectivity = plan.connectivity
    assert connectivity is not None

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        index, box = item
        watch = Stopwatch()
        seen = box.grown((0 if connectivity.per_section else 1, 1, 1)).clipped(Box.whole(volume.shape))
        labels = cleared(volume.read(seen), removed)
        pieces, count = background_pieces(labels[box.relative_to(seen.start).slices], connectivity)
        around = surroundings_of(pieces, count, labels, valid(box), box, seen, volume.shape, connectivity)
        faces = faces_of(pieces, connectivity)
        rim = faces.rim()
        # Pieces inside the block are whole: whether they are holes is known here.
        inner = around.fill
        inner[rim] = 0
        row = watch.lap("compute")
        kept = {**faces.to_arrays(), **around.of(rim).to_arrays(), INNER: inner}
        filled = (int((inner > 0).sum()), int(around.voxels[inner > 0].sum()))
        detail = {"labels": count, RIM: len(rim), **dict(zip(_COUNTED, filled, strict=True))}
        sum_ = save_faces(plan.output, index, kept, rim)
        return {**row, **watch.lap("write"), "checksum": sum_, "detail": detail}

    return process


def valid_of(plan: CleanPlan) -> ReadValid:
    """What tells which voxels are known to be background or object."""
    own = valid_reader(open_volume(plan.labels))
    if plan.predicted is None:
        return own
    predicted = valid_reader(open_volume(plan.predicted))
    return lambda box: own(box) & predicted(box)


# Writing


def make_writer(plan: CleanPlan) -> Process:
    """In a worker: open the volumes; returns the function that writes one block."""
    volume, output, removed = open_volume(plan.labels), open_volume(plan.output, writable=True), _removed(plan)

    def process(item: tuple[int, Box, Ids | None]) -> dict[str, Any]:
        index, box, rim_fill = item
        watch = Stopwatch()
        final = cleared(volume.read(box), removed)
        if rim_fill is not None and plan.connectivity is not None:
            arrays = load_faces(plan.output, index)
            fill = arrays[INNER]
            fill[arrays[RIM]] = rim_fill
            if fill.any():
                pieces, _ = background_pieces(final, plan.connectivity)
                final = np.where(final == 0, fill.astype(final.dtype)[pieces], final)
        row = watch.lap("compute")
        output.write(box, final)
        return {**row, **watch.lap("write"), "bytes": final.nbytes, "checksum": checksum(final)}

    return process
