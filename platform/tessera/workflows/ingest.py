"""Slices to volume: a multi-page TIFF or a folder of slices becomes a sharded OME-Zarr.

One output shard is one task, written whole; a task decodes only the sections of its shard, one at a time. What each
task saw of every section's values comes back in its row, so that blank sections are found without a second reading.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tessera.engine.tasks import Process
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.settings.ingest import IngestSettings
from tessera.settings.places import input_path, output_path
from tessera.storage.layouts import legal_layout
from tessera.storage.ledger import read_rows
from tessera.storage.stacks import SliceStack, open_stack
from tessera.storage.volumes import create_volume, open_volume, update_attributes
from tessera.workflows.block_jobs import (
    Stopwatch,
    checksum,
    claim_output,
    clear_output,
    job_key,
    run_block_job,
    session,
)

_log = logging.getLogger(__name__)


def ingest(settings: IngestSettings) -> Path:
    """Run the workflow; returns the volume's path.

    Raises:
      ValueError, OSError: the source cannot be used, or the target holds something else.
      BlocksFailedError: some shards could not be written.
    """
    source, output = input_path(settings.source), output_path(settings.output)
    stack = open_stack(source, kind=settings.kind, invert=settings.invert)
    layout = legal_layout(stack.shape, stack.dtype.itemsize, settings.chunk, settings.shard)
    facts = _facts(settings, source, stack)
    with session(settings):
        clear_output(output, settings.overwrite)
        volume = create_volume(
            output,
            stack.shape,
            stack.dtype,
            voxel_size_nm=settings.voxel_size_nm,
            chunk=layout.chunk,
            shard=layout.shard,
            attributes={"made_by": "ingest", "kind": settings.kind, "source": str(source), "complete": False},
            exist_ok=True,
        )
        claim_output(output, facts)
        grid = BlockGrid(volume.shape, volume.shard)
        _log.info("%s: %s %s in %d shards", output, "x".join(map(str, volume.shape)), volume.dtype, len(grid))
        run_block_job(output, grid, partial(_make_worker, stack, output), facts, settings)
    # A label section of one value may be meant; a blank image never is.
    blank = _blank_sections(output, grid) if settings.kind == "image" else []
    invalid = sorted({*stack.missing, *blank})
    _tell_invalid(stack, invalid)
    update_attributes(output, complete=True, invalid_sections=invalid)
    return output


def _facts(settings: IngestSettings, source: Path, stack: SliceStack) -> dict[str, Any]:
    chosen = asdict(settings)
    return {
        "workflow": "ingest",
        "source": {"path": str(source), "files": _files_digest(stack)},
        "shape": stack.shape,
        "dtype": str(stack.dtype),
        **{name: chosen[name] for name in ("kind", "invert", "voxel_size_nm", "chunk", "shard")},
    }


def _files_digest(stack: SliceStack) -> str:
    """Changes when a slice is replaced, renamed or moved to another place in the stack."""
    listed = []
    for page in stack.pages:
        status = page.path.stat() if page else None
        listed.append([str(page.path), status.st_size, status.st_mtime_ns] if page and status else None)
    return job_key({"pages": listed})


def _make_worker(stack: SliceStack, output: Path) -> Process:
    volume = open_volume(output, writable=True)

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        _, box = item
        watch = Stopwatch()
        block = np.empty(box.shape, stack.dtype)
        for offset, z in enumerate(range(box.start[0], box.stop[0])):
            block[offset] = stack.read_section(z)[box.slices[1:]]
        row = watch.lap("read")
        volume.write(box, block)
        flat = block.reshape(len(block), -1)
        extremes = {"low": flat.min(axis=1).tolist(), "high": flat.max(axis=1).tolist()}
        return {**row, **watch.lap("write"), "bytes": block.nbytes, "checksum": checksum(block), "detail": extremes}

    return process


def _blank_sections(output: Path, grid: BlockGrid) -> Iterable[int]:
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


def _tell_invalid(stack: SliceStack, invalid: list[int]) -> None:
    for z in invalid:
        why = "is missing from the numbering" if z in stack.missing else f"({stack.names[z]}) is blank"
        _log.warning("section %d %s: marked invalid; it is not predicted and not scored", z, why)
