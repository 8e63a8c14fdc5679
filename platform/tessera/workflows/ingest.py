"""Slices to volume: a multi-page TIFF, a folder of slices or an HDF5 dataset becomes a sharded OME-Zarr.

One output shard is one task and one row of the ledger, written whole by one writer: a job that was killed goes on shard
by shard. Strips and tiles are decoded once for a row of shards, within a worker's memory (`shard_rows` says how), and
what was never stored is neither decoded nor written. What each task saw of every section's values comes back in its
row, so that blank sections are found without a second reading. Without Ray dask is the reader, and the oracle of
the other. Of an HDF5 dataset, whose chunks are boxes as shards are, each shard is read by itself (`storage/hdf5`).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.settings.ingest import IngestSettings
from tessera.settings.places import local_input_path
from tessera.storage.dask_windows import opened_with_dask
from tessera.storage.hdf5 import SUFFIXES, Hdf5Array, Nm, is_hdf5, open_hdf5
from tessera.storage.layouts import legal_layout
from tessera.storage.ledger import read_rows
from tessera.storage.locations import Place
from tessera.storage.page_windows import opened
from tessera.storage.stacks import SliceStack, open_stack
from tessera.storage.volumes import Volume, open_volume, update_attributes
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job, session
from tessera.workflows.outputs import OutputPlan, claimed_output, digest_of, plan_output
from tessera.workflows.preflight import log_forecast
from tessera.workflows.row_reader import RowReader
from tessera.workflows.shard_rows import RowPlan, plan_rows, row_shard

_log = logging.getLogger(__name__)

Take = Callable[[int, Sequence[int]], tuple[NDArray[Any] | None, int]]


def ingest(settings: IngestSettings) -> Place:
    """Run the workflow; returns the volume's path.

    Raises:
      ValueError, OSError: the source cannot be used, or the target holds something else.
      BlocksFailedError: some shards could not be written.
    """
    source = local_input_path(settings.source)
    if is_hdf5(source):
        return ingest_hdf5(settings, source)
    stack = open_source(settings)
    output = plan_volume(settings, stack)
    itemsize = stack.dtype.itemsize
    rows = plan_rows(output.grid, itemsize, stack.segment, stack.pixel_bytes, settings.memory_gib)
    log_forecast(output)
    with session(settings), claimed_output(output, settings) as lease:
        _tell_output(output)
        _tell_rows(rows)
        make_worker = partial(_make_worker, stack, output, rows, serial=settings.engine == "serial")
        lane = partial(rows.lane, output.grid)
        run_block_job(output, make_worker, settings, lane=lane, squeeze=_alone, lease=lease)
        _finish(settings, output, stack)
    return output.path


def ingest_hdf5(settings: IngestSettings, path: Path) -> Place:
    """The same of a dataset in an HDF5 file.

    Raises:
      ValueError, OSError: the source cannot be used, or the target holds something else.
      BlocksFailedError: some shards could not be written.
    """
    array = open_hdf5(path, kind=settings.kind, dataset=settings.dataset, invert=settings.invert)
    output = plan_hdf5(settings, array)
    log_forecast(output)
    with session(settings), claimed_output(output, settings) as lease:
        _tell_output(output)
        run_block_job(output, partial(_make_hdf5_worker, array, output), settings, item=_alone_in(output), lease=lease)
        _finish(settings, output, array)
    return output.path


def open_source(settings: IngestSettings) -> SliceStack:
    """The slices that settings name.

    Raises:
      ValueError, OSError: they cannot be used.
    """
    if settings.dataset is not None:
        raise ValueError(
            f"dataset={settings.dataset} but {settings.source} is no HDF5 file ({', '.join(SUFFIXES)}): it would be "
            "passed over. Leave it out, or rename the file."
        )
    return open_stack(local_input_path(settings.source), kind=settings.kind, invert=settings.invert)


def _finish(settings: IngestSettings, output: OutputPlan, source: SliceStack | Hdf5Array) -> None:
    # A label section of one value may be meant; a blank image never is.
    blank = _blank_sections(output.path, output.grid) if settings.kind == "image" else []
    missing = source.missing if isinstance(source, SliceStack) else ()
    invalid = sorted({*missing, *blank})
    for z in invalid:
        name = source.names[z] if isinstance(source, SliceStack) else source.dataset
        why = "is missing from the numbering" if z in missing else f"({name}) is blank"
        _log.warning("section %d %s: marked invalid; it is not predicted and not scored", z, why)
    update_attributes(output.path, complete=True, invalid_sections=invalid)


def _tell_output(output: OutputPlan) -> None:
    _log.info("%s: %s %s in %d shards", output.path, _by(output.shape), output.dtype, len(output.grid))


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def plan_volume(settings: IngestSettings, stack: SliceStack) -> OutputPlan:
    """The volume that a stack becomes."""
    source = str(local_input_path(settings.source))
    settings, block = _with_rows(settings, stack)
    facts = {"path": source, "files": _files_digest(stack)}
    return _planned(settings, stack, facts, settings.voxel_size_nm, settings.offset_nm, block=block)


def plan_hdf5(settings: IngestSettings, array: Hdf5Array) -> OutputPlan:
    """The volume that a dataset becomes; voxel size and place are those of the file, which a user may add to.

    Raises:
      ValueError: the file says another voxel size or place than the user.
    """
    status = array.path.stat()
    facts = {"path": str(array.path), "file": [status.st_size, status.st_mtime_ns], "dataset": array.dataset}
    size = _agreed(array, "resolution", array.resolution_nm, "voxel_size_nm", settings.voxel_size_nm)
    if size is None:
        raise ValueError(
            f"{array.path}, {array.dataset} has no attribute resolution, and voxel_size_nm is not given: a volume "
            "without its true voxel size fits no model later. Give --voxel_size_nm '[40, 4, 4]', z, y, x."
        )
    offset = _agreed(array, "offset", array.offset_nm, "offset_nm", settings.offset_nm)
    return _planned(settings, array, facts, size, offset, dataset=array.dataset)


def _planned(
    settings: IngestSettings,
    source: SliceStack | Hdf5Array,
    facts: dict[str, Any],
    size: Nm | None,
    offset: Nm | None,
    *,
    block: tuple[int, int, int] | None = None,
    **attributes: Any,
) -> OutputPlan:
    # What its ledgers' keys held before there were offsets, so that earlier jobs resume.
    placed = {} if offset is None else {"offset_nm": list(offset)}
    return plan_output(
        settings,
        settings.output,
        source.shape,
        source.dtype,
        block=block,
        made_by="ingest",
        kind=settings.kind,
        voxel_size_nm=size,
        depends_on={
            "source": facts,
            "shape": source.shape,
            "invert": settings.invert,
            "voxel_size_nm": size,
            "kind": settings.kind,
            **placed,
        },
        attributes={"source": facts["path"], **attributes, **placed},
        translation_nm=offset,
    )


def _agreed(array: Hdf5Array, name: str, stored: Nm | None, option: str, given: Nm | None) -> Nm | None:
    if stored is not None and given is not None and not np.allclose(stored, given, rtol=0.01):
        raise ValueError(
            f"{array.path}, {array.dataset} says {name} {list(stored)} nm, {option}={list(given)} says otherwise: one "
            f"of them would put voxels in other places. Leave --{option} out, or mend the file."
        )
    return given if stored is None else stored


def _files_digest(stack: SliceStack) -> str:
    """Changes when a slice is replaced, renamed or moved to another place in the stack."""
    listed = []
    for page in stack.pages:
        status = page.path.stat() if page else None
        listed.append([str(page.path), status.st_size, status.st_mtime_ns] if page and status else None)
    return digest_of({"pages": listed})


def _with_rows(settings: IngestSettings, stack: SliceStack) -> tuple[IngestSettings, tuple[int, int, int] | None]:
    """Settings with the shard that suits the source, where none was asked for; or the block, where there are none."""
    itemsize = stack.dtype.itemsize
    usual = legal_layout(stack.shape, itemsize, settings.chunk, settings.shard)
    suited = row_shard(stack.shape, usual.chunk, usual.shard, itemsize, stack.segment)
    if settings.shard is not None or suited == usual.shard:
        return settings, None
    if settings.ome_zarr == "0.4":
        return settings, suited
    return replace(settings, shard=suited), None


def _tell_rows(rows: RowPlan) -> None:
    if rows.decodings > 1:
        _log.warning(
            "a row of shards needs more than memory_gib allows: strips or tiles are decoded up to %d times for it. "
            "Where that is slow, give more --memory_gib, or leave --shard out",
            rows.decodings,
        )


def _make_worker(stack: SliceStack, output: OutputPlan, rows: RowPlan, *, serial: bool) -> Process:
    _check_reachable(stack.path)
    volume = open_volume(output.path, writable=True)
    reader = RowReader(stack, output.grid, rows, opened_with_dask if serial else opened)
    return partial(process_block, reader.take, volume)


def _make_hdf5_worker(array: Hdf5Array, output: OutputPlan) -> Process:
    _check_reachable(array.path)
    volume = open_volume(output.path, writable=True)

    def take(index: int, _: Sequence[int]) -> tuple[NDArray[Any] | None, int]:
        return array.read(output.grid.box(index)), 0

    return partial(process_block, take, volume)


def _alone_in(output: OutputPlan) -> Callable[[int], tuple[int, Box, tuple[int, ...]]]:
    return lambda index: (index, output.grid.box(index), (index,))


def _check_reachable(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there on node {socket.gethostname()}: workers on every node read the source "
            "themselves. Put it on a file system that all nodes see at one path, or use this node alone with --engine "
            "serial."
        )


def _alone(item: tuple[int, Box, tuple[int, ...]], _times: int) -> tuple[int, Box, tuple[int, ...]]:
    """The same shard without its group: strips are decoded again for it, in the memory of one shard."""
    index, box, _ = item
    return index, box, (index,)


def process_block(reader: Take, volume: Volume, item: tuple[int, Box, tuple[int, ...]]) -> dict[str, Any]:
    """Make one shard and write it; returns the ledger's row.

    Args:
      reader: gives the voxels of a shard, None where nothing was ever stored, and how many strips and tiles were
        decoded for them; takes its index and those that are made together with it.
      volume: to write.
      item: the shard's index and box, and the shards that are to be made together with it.
    """
    index, box, group = item
    watch = Stopwatch()
    block, decoded = reader(index, group)
    row = watch.lap("read")
    if block is None:
        volume.erase(box)
        low, high, digest = [0] * box.shape[0], [0] * box.shape[0], _checksum_of_zeros(box.shape, volume.dtype)
    else:
        volume.write(box, block)
        flat = block.reshape(len(block), -1)
        low, high, digest = flat.min(axis=1).tolist(), flat.max(axis=1).tolist(), checksum(block)
    detail = {"low": low, "high": high, "decoded": decoded}
    size = box.size * volume.dtype.itemsize
    return {**row, **watch.lap("write"), "bytes": size, "checksum": digest, "detail": detail}


@lru_cache(maxsize=8)
def _checksum_of_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    return checksum(np.zeros(shape, dtype))


def _blank_sections(output: Place, grid: BlockGrid) -> Iterable[int]:
    """Sections of one constant value, from the extremes in the ledger's rows."""
    depth = grid.shape[0]
    low, high = [np.inf] * depth, [-np.inf] * depth
    for row in read_rows(output):
        if row.status == "done":
            first = grid.box(row.block).start[0]
            for offset, (least, most) in enumerate(zip(row.values["low"], row.values["high"], strict=True)):
                low[first + offset] = min(low[first + offset], least)
                high[first + offset] = max(high[first + offset], most)
    blank = [z for z in range(depth) if low[z] == high[z]]
    if len(blank) == depth:
        raise ValueError(
            f"every one of the {depth} sections is blank (one constant value): there is nothing to segment. "
            "Check the export that made these files."
        )
    return blank
