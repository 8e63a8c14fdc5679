"""Membrane probability to fragments: a watershed of every block with context, stitched by what neighbours agree on.

    faces    block with halo --> watershed --> its core's local labels, and planes at its faces, on disk
    seams    planes of neighbours --> what overlaps --> union-find --> numbering                     (stitching.py)
    last     local labels --> ids of the whole volume --> one shard each
    graph    fragments and one plane beyond --> contacts, and sizes, as rows in Parquet

A watershed takes a hundred times as long as writing its labels once, so that they are kept, and not cut again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.images.quantise import decode, encode
from tessera.labels.merge import BlockIds, apply_lookup
from tessera.labels.overlaps import OverlapRule, face_offsets, overlap_edges, planes_of, rim_of
from tessera.labels.region_graph import COLUMNS, RegionGraph, contacts_of, merged, no_contacts
from tessera.labels.watershed import WatershedRule, fragments_of, renumbered
from tessera.settings.segment import SegmentSettings, WatershedSettings
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.identity import identity
from tessera.storage.lease import Lease
from tessera.storage.ledger import ledger_path
from tessera.storage.locations import Place
from tessera.storage.tables import read_table, read_tables, write_table
from tessera.storage.validity import ReadValid, valid_reader
from tessera.storage.volumes import Volume, open_volume, update_attributes
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job
from tessera.workflows.membranes import checked_threshold
from tessera.workflows.outputs import OutputPlan, digest_of, plan_output
from tessera.workflows.plain import plain
from tessera.workflows.reporting import JobReports
from tessera.workflows.stitching import FACES, RIM, SeamRule, load_faces, make_face_checker, save_faces, stitched

KIND, GRAPH = "fragments", "graph"
_SIZES = ("id", "voxels")
# Voxels so much deeper than wide are sections: what lies between two of them is not seen.
_ANISOTROPIC = 3.0


@dataclass(frozen=True)
class FragmentsPlan:
    """A checked watershed: everything a worker needs, as plain values.

    Attributes:
      probability: the probability volume's place.
      output: that of the fragments.
      rule: how they are cut.
      halo: voxels read around a block, z, y, x.
      overlap: when fragments of neighbouring blocks are one.
    """

    probability: Place
    output: Place
    rule: WatershedRule
    halo: tuple[int, int, int]
    overlap: OverlapRule


def plan_fragments(settings: SegmentSettings, volume: Volume) -> tuple[FragmentsPlan, OutputPlan]:
    """Check everything that can be checked before work starts; nothing is touched.

    Raises:
      ValueError: the volume is no membrane probability with a voxel size, or the block does not fit the shards.
    """
    threshold = checked_threshold(settings, volume)
    rule, halo = watershed_rule(settings.watershed, threshold, volume)
    output = plan_output(
        settings,
        settings.fragments_name,
        volume.shape,
        np.uint64,
        block=settings.block,
        made_by="segment",
        kind=KIND,
        voxel_size_nm=volume.voxel_size_nm,
        depends_on={
            "input": {"path": volume.url, "identity": identity(volume)},
            "watershed": {**asdict(rule), "halo": halo, "overlap": settings.watershed.overlap},
        },
        attributes={
            "invalid_sections": sorted(volume.invalid_sections),
            "input": volume.url,
            "threshold": threshold,
            "settings": plain(settings),
        },
        name=KIND,
        translation_nm=volume.translation_nm,
    )
    overlap = OverlapRule(settings.watershed.overlap)
    return FragmentsPlan(volume.place, output.path, rule, halo, overlap), output


def watershed_rule(
    settings: WatershedSettings, threshold: float, volume: Volume
) -> tuple[WatershedRule, tuple[int, int, int]]:
    """The watershed of a volume, and the voxels around a block that it reads, z, y, x.

    Raises:
      ValueError: nobody says how large its voxels are.
    """
    if volume.voxel_size_nm is None:
        raise ValueError(
            f"{volume.url} does not say how large its voxels are: distances to membranes would have no meaning. Ingest "
            "its source with --voxel_size_nm, and predict it again."
        )
    z, y, x = volume.voxel_size_nm
    per_section = z > _ANISOTROPIC * max(y, x) if settings.per_section is None else settings.per_section
    rule = WatershedRule(1.0 - threshold, per_section, (z, y, x), settings.smoothing_nm)
    reach = settings.halo_px * x
    return rule, (0 if per_section else -int(-reach // z), -int(-reach // y), settings.halo_px)


def make_fragments(
    settings: SegmentSettings, plan: FragmentsPlan, output: OutputPlan, reports: JobReports, lease: Lease
) -> int:
    """All passes up to the graph, of which what is done is not done again; returns the number of fragments.

    Raises:
      BlocksFailedError: some blocks were given up, after the rest of their pass was done.
    """
    if settings.recheck or not open_volume(output.path).attributes.get("complete"):
        _cut(settings, plan, output, reports, lease)
    run_block_job(
        output,
        partial(_make_graph_worker, plan),
        settings,
        stage=GRAPH,
        tell=reports.over_time(GRAPH),
        lease=lease,
        make_checker=partial(_make_graph_checker, output.path),
    )
    return int(open_volume(output.path).attributes["fragments"])


def _cut(settings: SegmentSettings, plan: FragmentsPlan, output: OutputPlan, reports: JobReports, lease: Lease) -> None:
    run_block_job(
        output,
        partial(_make_cutter, plan),
        settings,
        stage=FACES,
        tell=reports.over_time("watershed"),
        lease=lease,
        make_checker=partial(_make_cut_checker, output.path),
    )
    rule = SeamRule(face_offsets(plan.rule.per_section), partial(overlap_edges, plan.overlap))
    numbering = stitched(output, rule, settings, reports, lease)
    run_block_job(
        output,
        partial(_make_fragment_writer, output.path),
        settings,
        item=lambda index: (index, output.grid.box(index), numbering.of(index)),
        tell=reports.over_time("fragments"),
        lease=lease,
    )
    update_attributes(output.path, complete=True, fragments=numbering.total)


def cut_block(
    plan: FragmentsPlan, volume: Volume, valid_of: ReadValid, box: Box
) -> tuple[NDArray[np.uint32], dict[str, NDArray[Any]]]:
    """Local fragments of one block, uint32 from 1 in the order of first voxels, and the planes at its faces."""
    grown = box.grown(plan.halo).clipped(Box.whole(volume.shape))
    membrane = decode(volume.read(grown))
    labels = fragments_of(membrane, valid_of(grown), plan.rule)
    core = box.relative_to(grown.start).slices
    local, old = renumbered(labels[core])
    names = np.zeros(int(labels.max(initial=0)) + 1, np.uint32)  # of what has no voxel in the core: 0
    names[old] = np.arange(len(old))
    return local, planes_of(names[labels], core, membrane, per_section=plan.rule.per_section)


def _make_cutter(plan: FragmentsPlan) -> Process:
    volume = open_volume(plan.probability)
    valid_of = valid_reader(volume)

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        index, box = item
        watch = Stopwatch()
        local, planes = cut_block(plan, volume, valid_of, box)
        rim = rim_of(planes)
        row = watch.lap("compute")
        save_arrays(_local_path(plan.output, index), {"labels": local})
        sum_ = _both(save_faces(plan.output, index, planes, rim), local)
        detail = {"labels": int(local.max(initial=0)), RIM: len(rim)}
        return {**row, **watch.lap("write"), "checksum": sum_, "detail": detail}

    return process


def _make_cut_checker(output: Place) -> Process:
    faces = make_face_checker(output)

    def check(item: tuple[int, Box]) -> dict[str, Any]:
        local = load_arrays(_local_path(output, item[0]))["labels"]
        return {"checksum": _both(faces(item)["checksum"], local)}

    return check


def _both(faces: str, local: NDArray[np.uint32]) -> str:
    return digest_of({"faces": faces, "local": checksum(local)})[:16]


def _make_fragment_writer(output: Place) -> Process:
    volume = open_volume(output, writable=True)

    def process(item: tuple[int, Box, BlockIds]) -> dict[str, Any]:
        index, box, ids = item
        watch = Stopwatch()
        local = load_arrays(_local_path(output, index))["labels"]
        row = watch.lap("read")
        final = apply_lookup(local, ids.lookup(int(local.max(initial=0)), load_faces(output, index)[RIM]))
        row |= watch.lap("compute")
        volume.write(box, final)
        return {**row, **watch.lap("write"), "bytes": final.nbytes, "checksum": checksum(final)}

    return process


def _make_graph_worker(plan: FragmentsPlan) -> Process:
    probability, fragments = open_volume(plan.probability), open_volume(plan.output)

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        index, box = item
        watch = Stopwatch()
        more = Box(box.start, tuple(n + 1 for n in box.stop)).clipped(Box.whole(fragments.shape))
        ids, stored = fragments.read(more), probability.read(more)
        row = watch.lap("read")
        membrane = stored if stored.dtype == np.uint8 else encode(decode(stored), "uint8")
        graph = contacts_of(ids, membrane, box.shape).columns()
        sizes = _sizes(ids[box.relative_to(box.start).slices])
        row |= watch.lap("compute")
        write_table(_graph_path(plan.output, index), graph)
        write_table(_sizes_path(plan.output, index), sizes)
        sum_ = _table_sum(graph | sizes)
        return {**row, **watch.lap("write"), "checksum": sum_, "detail": {"contacts": len(graph["a"])}}

    return process


def _sizes(ids: NDArray[np.uint64]) -> dict[str, NDArray[Any]]:
    found, counts = np.unique(ids, return_counts=True)
    return dict(zip(_SIZES, (found[found > 0], counts[found > 0]), strict=True))


def _make_graph_checker(output: Place) -> Process:
    def check(item: tuple[int, Box]) -> dict[str, Any]:
        graph, sizes = (
            read_table(_graph_path(output, item[0]), COLUMNS),
            read_table(_sizes_path(output, item[0]), _SIZES),
        )
        return {"checksum": _table_sum(graph | sizes)}

    return check


def _table_sum(columns: dict[str, NDArray[Any]]) -> str:
    return digest_of({name: checksum(column) for name, column in columns.items()})[:16]


def load_graph(output: Place, blocks: int) -> RegionGraph:
    """The contacts of all blocks together; about 350 bytes each, twice that for a moment."""
    parts: list[RegionGraph] = [no_contacts()]
    for columns in read_tables([_graph_path(output, index) for index in range(blocks)], COLUMNS):
        parts.append(RegionGraph(**columns))
        if sum(map(len, parts[1:])) > len(parts[0]):  # so that each row is merged a few times, and few are kept twice
            parts = [merged(parts)]
    return merged(parts)


def load_sizes(output: Place, blocks: int, fragments: int) -> NDArray[np.int64]:
    """Voxels of every fragment, by id: int64, (fragments + 1,)."""
    sizes = np.zeros(fragments + 1, np.int64)
    for columns in read_tables([_sizes_path(output, index) for index in range(blocks)], _SIZES):
        sizes[columns["id"]] += columns["voxels"]
    return sizes


def _paths(output: Place, parts: Sequence[str]) -> Place:
    place = ledger_path(output)
    for part in parts:
        place = place / part
    return place


def _local_path(output: Place, index: int) -> Place:
    return _paths(output, (FACES, f"local-{index:09d}.npz"))


def _graph_path(output: Place, index: int) -> Place:
    return _paths(output, (GRAPH, f"contacts-{index:09d}.parquet"))


def _sizes_path(output: Place, index: int) -> Place:
    return _paths(output, (GRAPH, f"sizes-{index:09d}.parquet"))
