"""Fragments to cells: merged by the stored graph, and written under their final ids.

    fragments and their graph, made or found     (fragments.py)
    driver    graph --> agglomeration --> cell of every fragment, in files of a million ids
    labels    fragments --> cells --> one shard each

An output at another threshold shares fragments and graph: nothing is cut again, and probability is not even read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.labels.agglomeration import AgglomerationRule, agglomerated
from tessera.settings.segment import SegmentSettings
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.lease import Lease
from tessera.storage.ledger_job import has_job, ledger_path, read_job
from tessera.storage.locations import Place
from tessera.storage.objects import is_file, read_bytes, write_bytes
from tessera.storage.volumes import Volume, open_volume, update_attributes
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job
from tessera.workflows.fragments import FragmentsPlan, load_graph, load_sizes, make_fragments, plan_fragments
from tessera.workflows.membranes import CELLS
from tessera.workflows.outputs import OutputPlan, claimed_output, plan_output
from tessera.workflows.plain import plain
from tessera.workflows.reporting import JobReports

LOOKUP = "lookup"
_IDS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class WatershedPlan:
    """A checked segmentation by watershed and agglomeration.

    Attributes:
      fragments: how fragments are cut.
      made: the fragments' volume.
      output: the cells' volume.
      rule: how fragments become cells.
    """

    fragments: FragmentsPlan
    made: OutputPlan
    output: OutputPlan
    rule: AgglomerationRule


def plan_watershed(settings: SegmentSettings, volume: Volume) -> WatershedPlan:
    """Check everything that can be checked before work starts; nothing is touched.

    Raises:
      ValueError: see `plan_fragments`.
    """
    fragments, made = plan_fragments(settings, volume)
    given = settings.agglomeration
    rule = AgglomerationRule(given.threshold, fragments.rule.per_section, given.link, given.evidence)
    output = plan_output(
        settings,
        settings.output,
        volume.shape,
        np.uint64,
        block=settings.block,
        made_by="segment",
        kind=CELLS,
        voxel_size_nm=volume.voxel_size_nm,
        depends_on={"fragments": {"path": str(made.path), "key": made.key}, "agglomeration": asdict(rule)},
        attributes={
            "invalid_sections": sorted(volume.invalid_sections),
            "input": volume.url,
            "fragments": str(made.path),
            "threshold": made.attributes["threshold"],
            "agglomeration": asdict(rule),
            "settings": plain(settings),
        },
        name="cells",
        translation_nm=volume.translation_nm,
    )
    return WatershedPlan(fragments, made, output, rule)


def run_watershed(settings: SegmentSettings, plan: WatershedPlan, reports: JobReports, lease: Lease) -> int:
    """All passes; returns the number of cells.

    Raises:
      OutputInUseError: another driver makes the fragments.
      ValueError: there are fragments of other settings.
      BlocksFailedError: some blocks were given up, after the rest of their pass was done.
    """
    # Fragments that were named may be others' as well, and are never deleted for the sake of one output.
    own = replace(settings, overwrite=settings.overwrite and settings.fragments is None and _outdated(plan.made))
    with claimed_output(plan.made, own) as fragments_lease:
        fragments = make_fragments(settings, plan.fragments, plan.made, reports, fragments_lease)
    told = _merge(plan, fragments, again=settings.recheck)
    labels = run_block_job(
        plan.output,
        partial(_make_label_worker, plan.made.path, plan.output.path),
        settings,
        item=plan.output.grid.box,
        tell=reports.over_time(),
        lease=lease,
    )
    update_attributes(plan.output.path, complete=True, cells=told["cells"], fragments_merged=told["fragments"])
    if labels.computed:
        reports.summary(labels.metrics | told)
    return told["cells"]


def _outdated(made: OutputPlan) -> bool:
    """Whether what is there are not these fragments."""
    return not has_job(made.path) or read_job(made.path)["key"] != made.key


def _merge(plan: WatershedPlan, fragments: int, *, again: bool) -> dict[str, int]:
    """Merge, and keep the cell of every fragment in files; what was kept already is taken as it is, unless `again`."""
    done = _lookup_folder(plan.output.path) / "done.json"
    if again or not is_file(done):
        blocks = len(plan.made.grid)
        graph, sizes = load_graph(plan.made.path, blocks), load_sizes(plan.made.path, blocks, fragments)
        cells = numbered_cells(agglomerated(graph, sizes, plan.rule))
        told = {"cells": int(cells.max(initial=0)), "fragments": fragments, "contacts": len(graph)}
        for first in range(0, fragments + 1, _IDS_AT_ONCE):
            _save_lookup(plan.output.path, first // _IDS_AT_ONCE, cells[first : first + _IDS_AT_ONCE])
        write_bytes(done, json.dumps(told).encode())
    found: dict[str, int] = json.loads(read_bytes(done))
    return found


def numbered_cells(roots: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Ids 1..n of cells, in the order of each one's smallest fragment.

    >>> numbered_cells(np.array([0, 1, 2, 1, 4])).tolist()
    [0, 1, 2, 1, 3]

    Args:
      roots: int64, (fragments + 1,): the smallest fragment of each one's cell, by id; that of 0 is 0.
    """
    first = roots == np.arange(len(roots))
    first[0] = False
    cells: NDArray[np.uint64] = np.cumsum(first).astype(np.uint64)[roots]
    return cells


def _save_lookup(output: Place, number: int, cells: NDArray[np.uint64]) -> None:
    place = _lookup_path(output, number)
    if isinstance(place, Path):
        place.parent.mkdir(exist_ok=True)
    save_arrays(place, {"cells": cells})


def _make_label_worker(fragments: Place, output: Place) -> Process:
    source, target = open_volume(fragments), open_volume(output, writable=True)

    def process(box: Box) -> dict[str, Any]:
        watch = Stopwatch()
        ids = source.read(box)
        row = watch.lap("read")
        found, where = np.unique(ids, return_inverse=True)
        final = _cells_of(output, found)[where].reshape(ids.shape)
        row |= watch.lap("compute")
        target.write(box, final)
        return {**row, **watch.lap("write"), "bytes": final.nbytes, "checksum": checksum(final)}

    return process


def _cells_of(output: Place, fragments: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The cells of some fragments, ascending, from the files that hold them."""
    cells = np.empty(len(fragments), np.uint64)
    files = fragments // np.uint64(_IDS_AT_ONCE)
    for number in np.unique(files).tolist():
        chosen = files == number
        cells[chosen] = load_arrays(_lookup_path(output, number))["cells"][fragments[chosen] % np.uint64(_IDS_AT_ONCE)]
    return cells


def _lookup_folder(output: Place) -> Place:
    return ledger_path(output) / LOOKUP


def _lookup_path(output: Place, number: int) -> Place:
    return _lookup_folder(output) / f"cells-{number:06d}.npz"
