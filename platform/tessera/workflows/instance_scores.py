"""3D cells against ground truth of ids: overlaps counted block by block, then one set of scores for the whole volume.

    block of cells + the labels that lie there --> table of overlaps on disk, its size in the ledger
    driver: all tables --> one table --> VOI, adapted Rand error, CREMI score --> MLflow

No block needs another, and tables add up: a killed evaluation goes on where it stopped, and one that was finished reads
no voxel again. Tables lie under TESSERA_HOME/scores: the volumes may be somebody else's, and read only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.images.colours import label_colours, shown_grey
from tessera.images.targets import UnknownLabel, unknown_value
from tessera.metrics.contingency import Contingency, count_overlaps, merge_tables
from tessera.metrics.instances import InstanceScores, finish
from tessera.settings.common import RunnerSettings
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.places import home, input_path
from tessera.settings.sections import name_sections, parse_sections
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.identity import identity
from tessera.storage.layouts import Layout, legal_layout
from tessera.storage.ledger import ledger_path
from tessera.storage.locations import Place
from tessera.storage.validity import ReadValid, valid_reader
from tessera.storage.volumes import Volume, open_volume
from tessera.tracking.pictures import contact_sheet
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri
from tessera.workflows.alignment import Offset, labels_origin, met_by_labels
from tessera.workflows.annotated import check_is_labels
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job, session
from tessera.workflows.membranes import SECTION_CELLS as PER_SECTION
from tessera.workflows.outputs import OutputPlan, digest_of, open_finished
from tessera.workflows.panels import middle_of_section, raw_behind
from tessera.workflows.plain import plain
from tessera.workflows.predict import KIND as PROBABILITY
from tessera.workflows.scene import inputs_of

_log = logging.getLogger(__name__)

STAGE, METHOD = "overlaps", 1
# Workers take longer to start than this many voxels take to count.
_SMALL_VOXELS = 2**25
_MERGED_AT_ONCE = 64
_SHOWN_SECTIONS = 6


@dataclass(frozen=True)
class OverlapPlan:
    """A checked evaluation of cells: everything a worker needs, as plain values.

    Attributes:
      cells: the volume of ids that is scored.
      labels: the ground truth.
      origin: the voxel of the cells at which voxel 0 of the labels lies.
      unknown: the label of voxels that nobody annotated.
      sections: the labels' sections that are scored.
      predicted: what tells which voxels were predicted at all; None where all were.
      tables: where tables and their ledger lie.
    """

    cells: Place
    labels: Place
    origin: Offset
    unknown: int | None
    sections: tuple[int, ...]
    predicted: Place | None
    tables: Place


def score_cells(settings: EvaluateSettings) -> dict[str, Any]:
    """Run the workflow; returns the scores as JSON values.

    Raises:
      ValueError, OSError: the volumes do not fit each other, or nothing is left to score.
      BlocksFailedError: some blocks could not be counted, after the rest was.
    """
    cells, labels = _opened(settings, str(settings.cells)), _opened(settings, settings.labels)
    plan, job = plan_overlaps(settings, cells, labels)
    uri = tracking_uri(settings.tracking.uri, home())
    tags = {"tessera.workflow": "evaluate", "tessera.output": cells.url}
    name = f"evaluate {cells.place.name}"
    with tracked_run(uri, settings.tracking.experiment, name, plain(settings), tags, home()) as run:
        scores = finish(count_volume(plan, job, settings))
        result = {"cells": cells.url, "labels": labels.url, "sections": list(plan.sections), **scores.to_dict()}
        _track(run, plan, cells, labels, scores, result)
    return result


def _opened(settings: EvaluateSettings, name: str) -> Volume:
    return open_finished(input_path(name, anonymous=settings.storage.anonymous))


def plan_overlaps(settings: EvaluateSettings, cells: Volume, labels: Volume) -> tuple[OverlapPlan, OutputPlan]:
    """Check everything that can be checked before voxels are read; nothing is touched.

    Raises:
      ValueError: the volumes are no ids, do not fit each other, or no section is left.
    """
    _check_ids(cells, "cells")
    check_is_labels(labels)
    _check_ids(labels, "labels")
    if cells.attributes.get("kind") == PER_SECTION:
        _log.warning(
            "%s holds 2D cells, whose ids differ from section to section: against 3D objects each counts as a split",
            cells.url,
        )
    origin = labels_origin(cells, labels)
    sections = _sections(settings, cells, labels, origin)
    predicted = _predicted(cells)
    unknown = unknown_id(labels.dtype, settings.unknown_label)
    facts = {
        "method": METHOD,
        "cells": identity(cells),
        "labels": identity(labels),
        "origin": origin,
        "unknown": unknown,
        "sections": name_sections(sections),
        "predicted": None if predicted is None else identity(predicted),
    }
    tables = home() / "scores" / f"{cells.place.name.removesuffix('.zarr')}-{digest_of(facts)[:12]}"
    place = None if predicted is None else predicted.place
    plan = OverlapPlan(cells.place, labels.place, origin, unknown, sections, place, tables)
    block = legal_layout(cells.shape, cells.dtype.itemsize).shard
    job = OutputPlan(
        tables,
        made_by="evaluate",
        kind="overlaps",
        shape=cells.shape,
        dtype=cells.dtype.name,
        layout=Layout(block, block),
        block=block,
        voxel_size_nm=cells.voxel_size_nm,
        depends_on=facts,
    )
    return plan, job


def _check_ids(volume: Volume, noun: str) -> None:
    if volume.dtype.kind not in "uib":
        raise ValueError(
            f"{noun} {volume.url} are {volume.dtype}, and ids are whole numbers: grey values would pass for objects. "
            "Give a volume that tessera segment wrote, or one ingested with --kind labels."
        )


def unknown_id(dtype: np.dtype[Any], unknown: UnknownLabel) -> int | None:
    """The id that means unknown: the one that the user names, else the largest uint64, which no object has.

    >>> unknown_id(np.dtype("uint32"), None), unknown_id(np.dtype("uint64"), None) == 2**64 - 1
    (None, True)
    """
    return unknown_value(dtype, "largest" if unknown is None and dtype == np.uint64 else unknown)


def _sections(settings: EvaluateSettings, cells: Volume, labels: Volume, origin: Offset) -> tuple[int, ...]:
    """Sections of the labels that are scored: those asked for that both volumes have, and that nobody calls invalid."""
    chosen = parse_sections(settings.sections, labels.shape[0])
    invalid = labels.invalid_sections | {z - origin[0] for z in cells.invalid_sections}
    met = met_by_labels(cells, labels, origin)
    left = tuple(z for z in chosen if z not in invalid and met.start[0] <= z + origin[0] < met.stop[0])
    lost = sorted(set(chosen) - set(left))
    if lost and settings.sections is not None:
        raise ValueError(
            f"sections {lost} of {labels.url} lie outside {cells.url}, or are marked invalid in one of them: leave "
            "them out of --sections."
        )
    if not left:
        raise ValueError(f"no section of {labels.url} is valid there and in {cells.url}: there is nothing to score.")
    return left


def _predicted(cells: Volume) -> Volume | None:
    """The probability that the cells were cut from, where it says that some voxels were never predicted."""
    found = (one for one in inputs_of(cells) if one.attributes.get("kind") == PROBABILITY)
    probability = next(found, None)
    kept = probability is not None and "validity" in probability.attributes and probability.shape == cells.shape
    return probability if kept else None


def count_volume(plan: OverlapPlan, job: OutputPlan, runner: RunnerSettings) -> Contingency:
    """Count what is not counted yet, and add all tables up.

    Raises:
      BlocksFailedError: some blocks could not be counted.
    """
    labels = open_volume(plan.labels)
    first, last = plan.origin[0] + plan.sections[0], plan.origin[0] + plan.sections[-1]
    met = met_by_labels(open_volume(plan.cells), labels, plan.origin)
    scored = Box((first, *met.start[1:]), (last + 1, *met.stop[1:]))
    grid = job.grid
    needed = [index for index, box in grid.boxes() if box.clipped(scored).size]
    small = len(needed) * int(np.prod(grid.block)) <= _SMALL_VOXELS
    own = RunnerSettings(
        engine="serial" if small else runner.engine,
        workers=runner.workers,
        attempts=runner.attempts,
        retry_failed=runner.retry_failed,
        recheck=runner.recheck,
        lease_expiry_s=runner.lease_expiry_s,
    )
    wanted = set(needed)
    with session(own):
        run_block_job(
            job,
            partial(make_worker, plan),
            own,
            stage=STAGE,
            settled=lambda index: None if index in wanted else {"detail": {"skipped": True}},
            make_checker=partial(_make_checker, plan),
        )
    return _added_up(_tables(plan, needed))


def _tables(plan: OverlapPlan, blocks: list[int]) -> Iterator[Contingency]:
    return (Contingency.from_arrays(load_arrays(_table_path(plan.tables, index))) for index in blocks)


def _added_up(tables: Iterator[Contingency]) -> Contingency:
    """A few at a time: what is held is the sum and these few."""
    total = merge_tables([])
    while some := list(islice(tables, _MERGED_AT_ONCE)):
        total = merge_tables([total, *some])
    return total


def make_worker(plan: OverlapPlan) -> Process:
    """In a worker: open the volumes; returns the function that counts one block."""
    cells, labels = open_volume(plan.cells), open_volume(plan.labels)
    valid = valid_reader(open_volume(plan.predicted)) if plan.predicted is not None else None

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        index, box = item
        watch = Stopwatch()
        truth, proposal = overlapping(plan, cells, labels, valid, box)
        row = watch.lap("read")
        arrays = count_overlaps(truth, proposal).to_arrays()
        row |= watch.lap("compute")
        save_arrays(_table_path(plan.tables, index), arrays)
        detail = {"pairs": len(arrays["count"])}
        return {**row, **watch.lap("write"), "checksum": _sum_of(arrays), "detail": detail}

    return process


def overlapping(
    plan: OverlapPlan, cells: Volume, labels: Volume, valid: ReadValid | None, box: Box
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Truth and proposal of the part of a block that the labels cover; truth is 0 where it is not scored.

    Args:
      plan: the evaluation.
      cells: the volume of ids.
      labels: the ground truth.
      valid: tells which voxels were predicted; None where all were.
      box: in the cells' voxels.
    """
    part = box.clipped(met_by_labels(cells, labels, plan.origin))
    truth, proposal = labels.read(part.relative_to(plan.origin)), cells.read(part)
    if plan.unknown is not None:
        truth[truth == plan.unknown] = 0
    if valid is not None:
        truth[~valid(part)] = 0
    truth[~np.isin(np.arange(part.start[0], part.stop[0]) - plan.origin[0], plan.sections)] = 0
    return truth, proposal


def _table_path(tables: Place, index: int) -> Place:
    return ledger_path(tables) / STAGE / f"overlaps-{index:09d}.npz"


def _make_checker(plan: OverlapPlan) -> Process:
    return lambda item: {"checksum": _sum_of(load_arrays(_table_path(plan.tables, item[0])))}


def _sum_of(arrays: dict[str, NDArray[Any]]) -> str:
    return digest_of({name: checksum(array) for name, array in arrays.items()})[:16]


def _track(
    run: Tracker, plan: OverlapPlan, cells: Volume, labels: Volume, scores: InstanceScores, result: dict[str, Any]
) -> None:
    run.metrics(scores.metrics)
    run.document("scores.json", result)
    if cells.attributes.get("run_id"):
        run.link("segmented_by", cells.attributes["run_id"])
    for z in _shown(plan.sections):
        run.picture("section", contact_sheet([panels(plan, cells, labels, z)], [f"section {z}"]), step=z)


def _shown(sections: tuple[int, ...]) -> list[int]:
    places = np.linspace(0, len(sections) - 1, min(len(sections), _SHOWN_SECTIONS))
    return [sections[round(place)] for place in places]


def panels(plan: OverlapPlan, cells: Volume, labels: Volume, z: int) -> dict[str, NDArray[Any]]:
    """Raw, truth and cells of one section of the labels, with a colour per id that is the same in every section."""
    box = middle_of_section(z, labels.shape).shifted(plan.origin).clipped(Box.whole(cells.shape))
    probability = next((one for one in inputs_of(cells) if one.attributes.get("kind") == PROBABILITY), None)
    raw = None if probability is None else raw_behind(probability, box)
    shown: dict[str, NDArray[Any]] = {} if raw is None else {"raw": shown_grey(raw)}
    truth = labels.read(box.relative_to(plan.origin))[0]
    if plan.unknown is not None:
        truth[truth == plan.unknown] = 0
    return {**shown, "truth": label_colours(truth), "cells": label_colours(cells.read(box)[0])}
