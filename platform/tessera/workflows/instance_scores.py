"""3D cells against ground truth of ids: overlaps counted block by block, then one set of scores for the whole volume.

    block of cells + the labels that lie there --> table of overlaps on disk, its size in the ledger
    driver: all tables --> one table --> VOI, adapted Rand error, CREMI score --> MLflow

No block needs another, and tables add up: a killed evaluation goes on where it stopped, and one that was finished reads
no voxel again. Tables lie under TESSERA_HOME/scores: the volumes may be somebody else's, and read only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.colours import label_colours, shown_grey
from tessera.images.targets import unknown_value
from tessera.metrics.contingency import Contingency, count_overlaps, merge_tables
from tessera.metrics.instances import InstanceScores, finish
from tessera.settings.common import RunnerSettings
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.places import home, input_path
from tessera.settings.sections import name_sections, parse_sections
from tessera.storage.identity import identity
from tessera.storage.locations import Place
from tessera.storage.validity import ReadValid, valid_reader
from tessera.storage.volumes import Volume, open_volume
from tessera.tracking.pictures import contact_sheet
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri
from tessera.workflows.alignment import Offset, labels_origin, met_by_labels, sections_to_score
from tessera.workflows.annotated import check_is_labels
from tessera.workflows.array_stages import MakeArrays, added_up, fitting_runner, plan_stage, run_stage, stage_arrays
from tessera.workflows.block_jobs import session
from tessera.workflows.membranes import SECTION_CELLS as PER_SECTION
from tessera.workflows.outputs import OutputPlan, open_finished
from tessera.workflows.panels import middle_of_section, raw_behind
from tessera.workflows.plain import plain
from tessera.workflows.scene import inputs_of, kind_of, predicted_from

_log = logging.getLogger(__name__)

STAGE, METHOD = "overlaps", 1
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
    """

    cells: Place
    labels: Place
    origin: Offset
    unknown: int | None
    sections: tuple[int, ...]
    predicted: Place | None


Besides = Callable[[Tracker, Volume], dict[str, Any]]
"""What else is told of labels and logged in the run; JSON values."""


def score_cells(settings: EvaluateSettings, besides: Besides | None = None) -> dict[str, Any]:
    """Run the workflow; returns the scores as JSON values.

    Args:
      settings: of the workflow.
      besides: adds to the result, in the same run.

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
        result |= besides(run, labels) if besides else {}
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
    chosen = parse_sections(settings.sections, labels.shape[0])
    sections = sections_to_score(chosen, cells, labels, origin, named=settings.sections is not None)
    predicted = predicted_from(cells)
    unknown = unknown_value(labels.dtype, settings.unknown_label)
    facts = {
        "method": METHOD,
        "cells": identity(cells),
        "labels": identity(labels),
        "origin": origin,
        "unknown": unknown,
        "sections": name_sections(sections),
        "predicted": None if predicted is None else identity(predicted),
    }
    place = None if predicted is None else predicted.place
    plan = OverlapPlan(cells.place, labels.place, origin, unknown, sections, place)
    return plan, plan_stage(cells, "scores", facts)


def _check_ids(volume: Volume, noun: str) -> None:
    if volume.dtype.kind not in "uib":
        raise ValueError(
            f"{noun} {volume.url} are {volume.dtype}, and ids are whole numbers: grey values would pass for objects. "
            "Give a volume that tessera segment wrote, or one ingested with --kind labels."
        )


def count_volume(plan: OverlapPlan, job: OutputPlan, runner: RunnerSettings) -> Contingency:
    """Count what is not counted yet, and add all tables up.

    Raises:
      BlocksFailedError: some blocks could not be counted.
    """
    labels = open_volume(plan.labels)
    first, last = plan.origin[0] + plan.sections[0], plan.origin[0] + plan.sections[-1]
    met = met_by_labels(open_volume(plan.cells), labels, plan.origin)
    scored = Box((first, *met.start[1:]), (last + 1, *met.stop[1:]))
    needed = [index for index, box in job.grid.boxes() if box.clipped(scored).size]
    own = fitting_runner(runner, job, len(needed))
    with session(own):
        run_stage(job, STAGE, partial(make_counter, plan), own, wanted=set(needed))
    return added_up(map(Contingency.from_arrays, stage_arrays(job.path, STAGE, needed)), merge_tables)


def make_counter(plan: OverlapPlan) -> MakeArrays:
    """In a worker: open the volumes; returns the function that counts one block."""
    cells, labels = open_volume(plan.cells), open_volume(plan.labels)
    valid = valid_reader(open_volume(plan.predicted)) if plan.predicted is not None else None
    return lambda box: count_overlaps(*overlapping(plan, cells, labels, valid, box)).to_arrays()


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
    box = middle_of_section(met_by_labels(cells, labels, plan.origin), z + plan.origin[0])
    probability = next((one for one in inputs_of(cells) if kind_of(one) == "probability"), None)
    raw = None if probability is None else raw_behind(probability, box)
    shown: dict[str, NDArray[Any]] = {} if raw is None else {"raw": shown_grey(raw)}
    truth = labels.read(box.relative_to(plan.origin))[0]
    if plan.unknown is not None:
        truth[truth == plan.unknown] = 0
    return {**shown, "truth": label_colours(truth), "cells": label_colours(cells.read(box)[0])}
