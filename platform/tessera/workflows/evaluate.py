"""Against ground truth: the ISBI 2012 metrics of membrane probability per section, or the scores of 3D cells.

Either way with pictures and the lineage. How cells are scored is said in `instance_scores`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.quantise import STORED_DTYPES, decode
from tessera.images.targets import CELL, UNKNOWN, target_of_labels
from tessera.metrics.isbi import THRESHOLDS, IsbiScores, SectionScores, finish, score_section
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.places import home, input_path
from tessera.settings.sections import parse_sections
from tessera.storage.validity import valid_reader
from tessera.storage.volumes import Volume
from tessera.tracking.curves import log_threshold_curve
from tessera.tracking.pictures import contact_sheet
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri
from tessera.workflows.annotated import check_is_labels, check_membrane_share
from tessera.workflows.instance_scores import score_cells
from tessera.workflows.membranes import CELLS, SECTION_CELLS
from tessera.workflows.outputs import open_finished
from tessera.workflows.panels import SectionPanels
from tessera.workflows.plain import plain
from tessera.workflows.predict import KIND as PROBABILITY

_log = logging.getLogger(__name__)


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Run the workflow; returns the scores as JSON values.

    Of a probability the value at the frozen threshold comes first; the maximum over thresholds, which published tables
    use, beside it.

    Raises:
      ValueError, OSError: the volumes do not fit each other.
      BlocksFailedError: some blocks of cells could not be counted.
    """
    if not settings.volume:
        return score_cells(settings)
    return score_probability(settings)


def score_probability(settings: EvaluateSettings) -> dict[str, Any]:
    """The ISBI 2012 scores of a probability volume.

    Raises:
      ValueError, OSError: the volumes do not fit each other.
    """
    probability, labels = _opened(settings, settings.volume), _opened(settings, settings.labels)
    sections = _scored_sections(settings, probability, labels)
    # Refused before hours of scoring: against swapped labels every score is a number, and means nothing.
    check_membrane_share((_target(settings, probability, labels, z) for z in sections), labels.url, "--invert_labels")
    sections = _with_known_cells(settings, probability, labels, sections)
    panels = SectionPanels(
        probability, labels, _cells(settings, probability), settings.invert_labels, settings.unknown_label
    )
    result = scored(settings, probability, labels, sections)
    uri = tracking_uri(settings.tracking.uri, home())
    tags = {"tessera.workflow": "evaluate", "tessera.output": probability.url}
    name = f"evaluate {probability.url.rsplit('/', 1)[-1]}"
    with tracked_run(uri, settings.tracking.experiment, name, plain(settings), tags, home()) as run:
        _log_scores(run, result, probability)
        for z in shown_sections(sections):
            run.picture("section", contact_sheet([panels.of(z)], [f"section {z}"]), step=z)
    return result


def scored(
    settings: EvaluateSettings, probability: Volume, labels: Volume, sections: tuple[int, ...]
) -> dict[str, Any]:
    """The scores as JSON values, the frozen threshold's first."""
    frozen = settings.threshold if settings.threshold is not None else probability.attributes.get("threshold")
    scores = score_volume(settings, probability, labels, sections, frozen)
    # The maximum is that of published tables: over their thresholds, not over one that a user adds.
    published = replace(scores, rows=tuple(row for row in scores.rows if row.threshold in THRESHOLDS))
    return {
        "volume": probability.url,
        "labels": labels.url,
        "sections": [int(z) for z in sections],
        "frozen_threshold": scores.at(frozen) if frozen is not None else None,
        "maximum_over_thresholds": published.best(),
        "by_threshold": scores.to_dict()["rows"],
    }


def shown_sections(sections: Sequence[int], most: int = 10) -> list[int]:
    """Sections to draw: all, or `most` of them evenly spread.

    >>> shown_sections(range(24, 30))
    [24, 25, 26, 27, 28, 29]
    >>> shown_sections(range(100), most=3)
    [0, 50, 99]
    """
    if len(sections) <= most:
        return list(sections)
    return [sections[round(i)] for i in np.linspace(0, len(sections) - 1, most)]


def _opened(settings: EvaluateSettings, name: str) -> Volume:
    return open_finished(input_path(name, anonymous=settings.storage.anonymous))


def _cells(settings: EvaluateSettings, probability: Volume) -> Volume | None:
    if settings.cells is None:
        return None
    cells = _opened(settings, settings.cells)
    if cells.shape != probability.shape or cells.attributes.get("kind") not in (CELLS, SECTION_CELLS):
        raise ValueError(
            f"cells {cells.url} hold {cells.attributes.get('kind')} of shape {cells.shape}, the probability has shape "
            f"{probability.shape}: they were not cut from it. Give the output of tessera segment on this volume."
        )
    return cells


def score_volume(
    settings: EvaluateSettings,
    probability: Volume,
    labels: Volume,
    sections: tuple[int, ...],
    frozen: float | None,
) -> IsbiScores:
    """Score the known, valid pixels of sections one at a time, at the published thresholds and the frozen one."""
    thresholds = tuple(sorted({*THRESHOLDS, *([float(frozen)] if frozen is not None else [])}))

    def one(z: int) -> SectionScores:
        target = _target(settings, probability, labels, z)
        return score_section(1.0 - decode(probability.section(z)), target == CELL, thresholds, known=target != UNKNOWN)

    return finish([one(z) for z in sections])


def _target(settings: EvaluateSettings, probability: Volume, labels: Volume, z: int) -> NDArray[np.uint8]:
    """What a section truly is, unknown where it was not predicted: that is not scored."""
    target = target_of_labels(labels.section(z), invert=settings.invert_labels, unknown=settings.unknown_label)
    if "validity" in probability.attributes:
        valid = valid_reader(probability)(Box((z, 0, 0), (z + 1, *probability.shape[1:])))[0]
        target = np.where(valid, target, np.uint8(UNKNOWN))
    return target


def _with_known_cells(
    settings: EvaluateSettings, probability: Volume, labels: Volume, sections: tuple[int, ...]
) -> tuple[int, ...]:
    """The sections that can be scored; those chosen by number must all be."""
    bare = [z for z in sections if not (_target(settings, probability, labels, z) == CELL).any()]
    if bare and settings.sections is not None:
        raise ValueError(
            f"sections {bare} of {labels.url} have no pixel that is known to be cell, and valid: only those are "
            "scored. Leave them out of --sections."
        )
    if bare:
        _log.warning("sections %s of %s are not scored: no pixel of them is known to be cell", bare, labels.url)
    return tuple(z for z in sections if z not in bare)


def _scored_sections(settings: EvaluateSettings, probability: Volume, labels: Volume) -> tuple[int, ...]:
    if probability.attributes.get("kind") != PROBABILITY or probability.dtype.name not in STORED_DTYPES:
        raise ValueError(
            f"{probability.url} is not membrane probability as `tessera predict` writes it "
            f"({', '.join(STORED_DTYPES)}). Give the output of tessera predict as --volume."
        )
    if probability.shape != labels.shape or len(labels.shape) != 3:
        raise ValueError(
            f"probability {probability.url} has shape {probability.shape}, the labels {labels.url} have "
            f"{labels.shape}: both must be z, y, x and equal, or voxels would be compared with others. Give the labels "
            "of the same volume."
        )
    check_is_labels(labels)
    chosen = parse_sections(settings.sections, labels.shape[0])
    unknown = probability.invalid_sections | labels.invalid_sections
    invalid = [z for z in chosen if z in unknown]
    if invalid and settings.sections is not None:
        raise ValueError(
            f"sections {invalid} are marked invalid in {probability.url} or {labels.url}: leave them out of --sections."
        )
    if len(invalid) == len(chosen):
        raise ValueError(
            f"every section of {probability.url} or its labels is marked invalid: there is nothing to score."
        )
    return tuple(z for z in chosen if z not in unknown)


def _log_scores(run: Tracker, result: dict[str, Any], probability: Volume) -> None:
    for name, scores in (("frozen", result["frozen_threshold"]), ("maximum", result["maximum_over_thresholds"])):
        if scores:
            run.metrics({f"{metric}_{name}": value for metric, value in scores.items()})
    run.document("scores.json", result)
    log_threshold_curve(run, result["by_threshold"], (result["frozen_threshold"] or {}).get("threshold"))
    if probability.attributes.get("run_id"):
        run.link("predicted_by", probability.attributes["run_id"])
    trained = probability.attributes.get("model", {}).get("training_run_id")
    if trained:
        run.link("scores", trained)  # a training's page leads to its scores at once
