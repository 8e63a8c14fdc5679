"""Which threshold of agglomeration is best where there is truth: one count of overlaps, one graph, any number of them.

    fragments + labels --> overlaps, block by block --> one table
    stored graph --> cells of every fragment at each threshold --> the table with fragments renamed --> scores

No voxel is read for a threshold, and no fragment is cut again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tessera.geometry.blocks import BlockGrid
from tessera.labels.agglomeration import AgglomerationRule, agglomerated
from tessera.metrics.instances import ScanRow, best_threshold, scan
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.places import input_path
from tessera.storage.ledger_job import read_job
from tessera.storage.locations import place_of
from tessera.storage.volumes import Volume
from tessera.tracking.curves import AGGLOMERATION, log_threshold_curve
from tessera.tracking.runs import Tracker
from tessera.workflows.fragments import load_graph, load_sizes
from tessera.workflows.instance_scores import count_volume, plan_overlaps, score_cells
from tessera.workflows.outputs import open_finished


def scan_agglomeration(settings: EvaluateSettings) -> dict[str, Any]:
    """Score cells, and what their fragments would be at each of the settings' thresholds; returns JSON values.

    Raises:
      ValueError: the cells were not agglomerated.
      FileNotFoundError: their fragments are gone.
      BlocksFailedError: some blocks could not be counted.
    """
    cells = open_finished(input_path(str(settings.cells), anonymous=settings.storage.anonymous))
    made, told = cells.attributes.get("fragments"), cells.attributes.get("agglomeration")
    if not isinstance(made, str) or not isinstance(told, dict):
        raise ValueError(
            f"{cells.url} was not agglomerated: it has no thresholds to choose among. Give the output of tessera "
            "segment --method watershed, or leave --thresholds out."
        )
    fragments, rule = open_finished(place_of(made)), AgglomerationRule(**told)

    def besides(run: Tracker, labels: Volume) -> dict[str, Any]:
        return _logged(run, _scanned(settings, fragments, rule, labels))

    return score_cells(settings, besides)


def _scanned(
    settings: EvaluateSettings, fragments: Volume, rule: AgglomerationRule, labels: Volume
) -> tuple[ScanRow, ...]:
    table = count_volume(*plan_overlaps(settings, fragments, labels), settings)
    facts = read_job(fragments.place)["description"]
    blocks = len(BlockGrid(tuple(facts["shape"]), tuple(facts["block"])))
    graph = load_graph(fragments.place, blocks)
    sizes = load_sizes(fragments.place, blocks, int(fragments.attributes["fragments"]))
    cells_at = ((t, agglomerated(graph, sizes, replace(rule, threshold=t))) for t in sorted(set(settings.thresholds)))
    return scan(table, cells_at)


def _logged(run: Tracker, rows: Sequence[ScanRow]) -> dict[str, Any]:
    best, told = best_threshold(rows), [row.metrics for row in rows]
    log_threshold_curve(run, told, best, chart=AGGLOMERATION)
    run.metrics({"best_threshold": best})
    return {"best_threshold": best, "by_threshold": told}
