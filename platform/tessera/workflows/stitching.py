"""From what blocks kept of their faces to the numbering of the whole volume: the part that all segmentations share.

    faces stage     block --> its faces and rim, a small file; counts in the ledger       (the method's own)
    seams stage     faces of neighbours --> what touches, as rows of rim numbers in Parquet
    driver          rows, file by file --> union-find over rim labels alone --> numbering
    last stage      block --> final ids                                                    (the method's own)

Each stage has its ledger, so that a kill costs the blocks that were in the works. What lies beside the ledgers is
written again with the same content when its block runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.labels.disjoint import DisjointSets
from tessera.labels.merge import Numbering, consecutive_numbering, running_starts
from tessera.labels.seams import Offset
from tessera.settings.common import RunnerSettings
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.lease import Lease
from tessera.storage.ledger import ledger_path, read_rows
from tessera.storage.locations import Place
from tessera.storage.tables import read_table, read_tables, write_table
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job
from tessera.workflows.outputs import OutputPlan, digest_of
from tessera.workflows.reporting import JobReports

Arrays = Mapping[str, NDArray[Any]]
FACES, SEAMS, RIM = "faces", "seams", "rim"
_EDGES = ("a", "b")
FEW_BLOCKS = 64
"""The seams of so few are looked at in the driver, before workers would have started."""


@dataclass(frozen=True)
class SeamRule:
    """How a method joins neighbouring blocks; pickles.

    Attributes:
      offsets: grid steps to the neighbours that are looked at, one of each opposite two.
      edges: given what two blocks kept and the step between them, pairs of local ids that are one object: (n, 2).
    """

    offsets: tuple[Offset, ...]
    edges: Callable[[Arrays, Arrays, Offset], NDArray[Any]]


def save_faces(output: Place, index: int, faces: Arrays, rim: NDArray[Any]) -> str:
    """Keep what a block's neighbours will ask for; returns its checksum."""
    kept = {**faces, RIM: rim}
    save_arrays(_faces_path(output, index), kept)
    return _sum_of(kept)


def load_faces(output: Place, index: int) -> dict[str, NDArray[Any]]:
    """What `save_faces` kept.

    Raises:
      FileNotFoundError, ValueError: it is missing or damaged.
    """
    return load_arrays(_faces_path(output, index))


def make_face_checker(output: Place) -> Process:
    """What sums the kept faces of a block again: takes (index, box)."""
    return lambda item: {"checksum": _sum_of(load_faces(output, item[0]))}


@dataclass(frozen=True)
class BlockCounts:
    """Labels of every block, and how many of them are rim labels, in the order of the grid."""

    labels: NDArray[np.int64]
    rims: NDArray[np.int64]


def block_counts(output: OutputPlan) -> BlockCounts:
    """What the faces stage recorded: its rows' details hold `labels` and `rim`."""
    labels, rims = (np.zeros(len(output.grid), np.int64) for _ in range(2))
    for row in read_rows(output.path, stage=FACES):
        if row.status == "done":
            labels[row.block], rims[row.block] = row.values["labels"], row.values[RIM]
    return BlockCounts(labels, rims)


def stitched(
    output: OutputPlan, rule: SeamRule, settings: RunnerSettings, reports: JobReports, lease: Lease
) -> Numbering:
    """Run the seams stage, and number the volume's objects 1..N.

    Args:
      output: its faces stage is done.
      rule: how blocks are joined.
      settings: serial or Ray.
      reports: hears how far it is.
      lease: the output's.

    Raises:
      BlocksFailedError: some seams could not be looked at.
    """
    counts, grid = block_counts(output), output.grid
    starts = running_starts(counts.rims)

    def item(index: int) -> tuple[int, int, list[tuple[Offset, int, int]]]:
        found = ((offset, grid.neighbour(index, offset)) for offset in rule.offsets)
        return index, int(starts[index]), [(offset, n, int(starts[n])) for offset, n in found if n is not None]

    run_block_job(
        output,
        partial(_make_seam_worker, output.path, rule),
        replace(settings, engine="serial") if len(grid) <= FEW_BLOCKS else settings,
        stage=SEAMS,
        item=item,
        tell=reports.over_time(SEAMS),
        lease=lease,
        make_checker=partial(_make_seam_checker, output.path),
    )
    sets = DisjointSets(int(starts[-1]))
    for edges in read_tables([_seams_path(output.path, index) for index in range(len(grid))], _EDGES):
        sets.join(np.stack([edges[name] for name in _EDGES], axis=1))
    return consecutive_numbering(counts.labels.tolist(), counts.rims.tolist(), sets.roots())


def _make_seam_worker(output: Place, rule: SeamRule) -> Process:
    def process(item: tuple[int, int, list[tuple[Offset, int, int]]]) -> dict[str, Any]:
        index, start, neighbours = item
        watch = Stopwatch()
        own = load_faces(output, index) if neighbours else {}
        rows = [np.empty((0, 2), np.int64)]
        for offset, other, other_start in neighbours:
            faces = load_faces(output, other)
            pairs = rule.edges(own, faces, offset)
            rows.append(_numbered(pairs, own[RIM], start, faces[RIM], other_start))
        row = watch.lap("compute")
        edges = dict(zip(_EDGES, np.concatenate(rows).T, strict=True))
        write_table(_seams_path(output, index), edges)
        return {**row, **watch.lap("write"), "checksum": _sum_of(edges), "detail": {"edges": len(edges["a"])}}

    return process


def _numbered(
    pairs: NDArray[Any], rim_a: NDArray[Any], start_a: int, rim_b: NDArray[Any], start_b: int
) -> NDArray[np.int64]:
    """Pairs of local ids as rim numbers of the volume: (n, 2)."""
    a, b = np.searchsorted(rim_a, pairs[:, 0]), np.searchsorted(rim_b, pairs[:, 1])
    return np.stack([a + start_a, b + start_b], axis=1).astype(np.int64)


def _make_seam_checker(output: Place) -> Process:
    return lambda item: {"checksum": _sum_of(read_table(_seams_path(output, item[0]), _EDGES))}


def _faces_path(output: Place, index: int) -> Place:
    return ledger_path(output) / FACES / f"faces-{index:09d}.npz"


def _seams_path(output: Place, index: int) -> Place:
    return ledger_path(output) / SEAMS / f"edges-{index:09d}.parquet"


def _sum_of(arrays: Arrays) -> str:
    return digest_of({name: checksum(array) for name, array in arrays.items()})[:16]
