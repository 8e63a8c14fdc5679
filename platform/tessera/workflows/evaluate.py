"""Against ground truth: the ISBI 2012 metrics of membrane probability per section, or the scores of 3D cells.

Either way with pictures and the lineage. How cells are scored is said in `instance_scores`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.quantise import STORED_DTYPES, decode
from tessera.images.targets import CELL, UNKNOWN, LabelRule
from tessera.metrics.isbi import THRESHOLDS, IsbiScores, SectionScores, finish, score_section
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.places import home, input_path
from tessera.settings.sections import parse_sections
from tessera.storage.validity import valid_reader
from tessera.storage.volumes import Volume
from tessera.tracking.curves import log_threshold_curve
from tessera.tracking.pictures import contact_sheet
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri
from tessera.workflows.agglomeration_scan import scan_agglomeration
from tessera.workflows.alignment import Offset, labels_origin, met_by_labels, sections_to_score
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
    if settings.thresholds:
        return scan_agglomeration(settings)
    if not settings.volume:
        return score_cells(settings)
    return score_probability(settings)


def score_probability(settings: EvaluateSettings) -> dict[str, Any]:
    """The ISBI 2012 scores of a probability volume.

    Raises:
      ValueError, OSError: the volumes do not fit each other.
    """
    probability, labels = _opened(settings, settings.volume), _opened(settings, settings.labels)
    truth = _truth(settings, probability, labels)
    sections = _scored_sections(settings, truth)
    # Refused before hours of scoring: against swapped labels every score is a number, and means nothing.
    check_membrane_share((truth.target(z) for z in sections), labels.url, settings.label_rule)
    sections = _with_known_cells(settings, truth, sections)
    panels = SectionPanels(probability, labels, _cells(settings, probability), truth.rule, truth.origin)
    result = scored(settings, truth, sections)
    uri = tracking_uri(settings.tracking.uri, home())
    tags = {"tessera.workflow": "evaluate", "tessera.output": probability.url}
    name = f"evaluate {probability.url.rsplit('/', 1)[-1]}"
    with tracked_run(uri, settings.tracking.experiment, name, plain(settings), tags, home()) as run:
        _log_scores(run, result, probability)
        for z in shown_sections(sections):
            run.picture("section", contact_sheet([panels.of(z)], [f"section {z}"]), step=z)
    return result


@dataclass(frozen=True)
class Truth:
    """What a probability is compared with, section by section.

    Attributes:
      probability: membrane probability.
      labels: the ground truth.
      rule: what its values mean.
      origin: the voxel of the probability at which the labels begin.
    """

    probability: Volume
    labels: Volume
    rule: LabelRule
    origin: Offset = (0, 0, 0)

    def box(self, z: int) -> Box:
        """The part of the probability's section that section z of the labels covers."""
        met = met_by_labels(self.probability, self.labels, self.origin)
        at = z + self.origin[0]
        return Box((at, *met.start[1:]), (at + 1, *met.stop[1:]))

    def target(self, z: int) -> NDArray[np.uint8]:
        """What a section truly is, unknown where it was not predicted: that is not scored."""
        box = self.box(z)
        target = self.rule.target(self.labels.read(box.relative_to(self.origin))[0])
        if "validity" in self.probability.attributes:
            target = np.where(valid_reader(self.probability)(box)[0], target, np.uint8(UNKNOWN))
        return target

    def cell_probability(self, z: int) -> NDArray[np.float32]:
        """What was predicted there."""
        cells: NDArray[np.float32] = 1.0 - decode(self.probability.read(self.box(z))[0])
        return cells


def scored(settings: EvaluateSettings, truth: Truth, sections: tuple[int, ...]) -> dict[str, Any]:
    """The scores as JSON values, the frozen threshold's first."""
    probability = truth.probability
    frozen = settings.threshold if settings.threshold is not None else probability.attributes.get("threshold")
    scores = score_volume(truth, sections, frozen)
    # The maximum is that of published tables: over their thresholds, not over one that a user adds.
    published = replace(scores, rows=tuple(row for row in scores.rows if row.threshold in THRESHOLDS))
    return {
        "volume": probability.url,
        "labels": truth.labels.url,
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


def score_volume(truth: Truth, sections: tuple[int, ...], frozen: float | None) -> IsbiScores:
    """Score the known, valid pixels of sections one at a time, at the published thresholds and the frozen one."""
    thresholds = tuple(sorted({*THRESHOLDS, *([float(frozen)] if frozen is not None else [])}))

    def one(z: int) -> SectionScores:
        target = truth.target(z)
        return score_section(truth.cell_probability(z), target == CELL, thresholds, known=target != UNKNOWN)

    return finish([one(z) for z in sections])


def _with_known_cells(settings: EvaluateSettings, truth: Truth, sections: tuple[int, ...]) -> tuple[int, ...]:
    """The sections that can be scored; those chosen by number must all be."""
    bare, labels = [z for z in sections if not (truth.target(z) == CELL).any()], truth.labels
    if bare and settings.sections is not None:
        raise ValueError(
            f"sections {bare} of {labels.url} have no pixel that is known to be cell, and valid: only those are "
            "scored. Leave them out of --sections."
        )
    if bare:
        _log.warning("sections %s of %s are not scored: no pixel of them is known to be cell", bare, labels.url)
    return tuple(z for z in sections if z not in bare)


def _truth(settings: EvaluateSettings, probability: Volume, labels: Volume) -> Truth:
    if probability.attributes.get("kind") != PROBABILITY or probability.dtype.name not in STORED_DTYPES:
        raise ValueError(
            f"{probability.url} is not membrane probability as `tessera predict` writes it "
            f"({', '.join(STORED_DTYPES)}). Give the output of tessera predict as --volume."
        )
    origin = labels_origin(probability, labels)
    check_is_labels(labels)
    return Truth(probability, labels, settings.label_rule, origin)


def _scored_sections(settings: EvaluateSettings, truth: Truth) -> tuple[int, ...]:
    chosen = parse_sections(settings.sections, truth.labels.shape[0])
    return sections_to_score(chosen, truth.probability, truth.labels, truth.origin, named=settings.sections is not None)


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
