"""Slices to volume: a multi-page TIFF or a folder of slices becomes a sharded OME-Zarr.

One output shard is one task, written whole; a task decodes only the sections of its shard, one at a time. What each
task saw of every section's values comes back in its row, so that blank sections are found without a second reading.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from tessera.engine.tasks import Process
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.settings.ingest import IngestSettings
from tessera.settings.places import local_input_path
from tessera.storage.ledger import read_rows
from tessera.storage.locations import Place
from tessera.storage.stacks import SliceStack, open_stack
from tessera.storage.volumes import open_volume, update_attributes
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job, session
from tessera.workflows.outputs import OutputPlan, claimed_output, digest_of, plan_output
from tessera.workflows.preflight import log_forecast

_log = logging.getLogger(__name__)


def ingest(settings: IngestSettings) -> Place:
    """Run the workflow; returns the volume's path.

    Raises:
      ValueError, OSError: the source cannot be used, or the target holds something else.
      BlocksFailedError: some shards could not be written.
    """
    stack = open_stack(local_input_path(settings.source), kind=settings.kind, invert=settings.invert)
    output = plan_volume(settings, stack)
    log_forecast(output)
    with session(settings), claimed_output(output, settings) as lease:
        _log.info("%s: %s %s in %d shards", output.path, _by(output.shape), output.dtype, len(output.grid))
        run_block_job(output, partial(_make_worker, stack, output.path), settings, lease=lease)
        # A label section of one value may be meant; a blank image never is.
        blank = _blank_sections(output.path, output.grid) if settings.kind == "image" else []
        invalid = sorted({*stack.missing, *blank})
        _tell_invalid(stack, invalid)
        update_attributes(output.path, complete=True, invalid_sections=invalid)
    return output.path


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def plan_volume(settings: IngestSettings, stack: SliceStack) -> OutputPlan:
    """The volume that a stack becomes."""
    source = str(local_input_path(settings.source))
    return plan_output(
        settings,
        settings.output,
        stack.shape,
        stack.dtype,
        made_by="ingest",
        kind=settings.kind,
        voxel_size_nm=settings.voxel_size_nm,
        depends_on={
            "source": {"path": source, "files": _files_digest(stack)},
            "shape": stack.shape,
            "invert": settings.invert,
            "voxel_size_nm": settings.voxel_size_nm,
            "kind": settings.kind,
        },
        attributes={"source": source},
    )


def _files_digest(stack: SliceStack) -> str:
    """Changes when a slice is replaced, renamed or moved to another place in the stack."""
    listed = []
    for page in stack.pages:
        status = page.path.stat() if page else None
        listed.append([str(page.path), status.st_size, status.st_mtime_ns] if page and status else None)
    return digest_of({"pages": listed})


def _make_worker(stack: SliceStack, output: Place) -> Process:
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


def _tell_invalid(stack: SliceStack, invalid: list[int]) -> None:
    for z in invalid:
        why = "is missing from the numbering" if z in stack.missing else f"({stack.names[z]}) is blank"
        _log.warning("section %d %s: marked invalid; it is not predicted and not scored", z, why)
