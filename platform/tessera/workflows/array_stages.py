"""A pass over a volume's blocks that leaves small named arrays behind: faces, overlaps, sizes.

    block --> arrays on disk beside the ledger --> their checksum in the ledger --> the driver reads them, one by one

Arrays lie in the ledger of an output that is to be written, or, where none is, in one of its own under TESSERA_HOME.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.settings.common import RunnerSettings
from tessera.settings.places import home
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.layouts import Layout, legal_layout
from tessera.storage.lease import Lease
from tessera.storage.ledger import ledger_path
from tessera.storage.locations import Place
from tessera.storage.volumes import Volume
from tessera.workflows.block_jobs import Stopwatch, checksum, run_block_job
from tessera.workflows.live import Tell
from tessera.workflows.outputs import OutputPlan, digest_of

Arrays = dict[str, NDArray[Any]]
MakeArrays = Callable[[Box], Arrays]
"""Gives the arrays of a block; called in a worker."""
Part = TypeVar("Part")

# Workers take longer to start than this many voxels take to read.
_SMALL_VOXELS = 2**25
_AT_ONCE = 64


def plan_stage(volume: Volume, purpose: str, depends_on: Mapping[str, Any]) -> OutputPlan:
    """A pass over a volume that writes no other: its blocks, and a place under TESSERA_HOME for what it leaves behind.

    Args:
      volume: whose blocks are passed over.
      purpose: names the place, such as `scores`.
      depends_on: JSON values that the arrays depend on.
    """
    name = f"{volume.place.name.removesuffix('.zarr')}-{digest_of(depends_on)[:12]}"
    block = legal_layout(volume.shape, volume.dtype.itemsize).shard
    return OutputPlan(
        home() / purpose / name,
        made_by=purpose,
        kind=purpose,
        shape=volume.shape,
        dtype=volume.dtype.name,
        layout=Layout(block, block),
        block=block,
        voxel_size_nm=volume.voxel_size_nm,
        depends_on=depends_on,
    )


def fitting_runner(runner: RunnerSettings, job: OutputPlan, blocks: int) -> RunnerSettings:
    """The runner, but serial where there is so little to do that starting workers takes longer."""
    small = blocks * int(np.prod(job.grid.block)) <= _SMALL_VOXELS
    return RunnerSettings(
        engine="serial" if small else runner.engine,
        workers=runner.workers,
        attempts=runner.attempts,
        retry_failed=runner.retry_failed,
        recheck=runner.recheck,
        lease_expiry_s=runner.lease_expiry_s,
    )


def run_stage(
    job: OutputPlan,
    stage: str,
    open_maker: Callable[[], MakeArrays],
    runner: RunnerSettings,
    *,
    wanted: Container[int] | None = None,
    lease: Lease | None = None,
    tell: Tell | None = None,
) -> None:
    """Make the arrays of every block that has none yet.

    Args:
      job: the blocks, and where their ledger lies.
      stage: the pass.
      open_maker: called once in a worker: opens volumes, and gives what makes the arrays of a block.
      runner: serial or Ray.
      wanted: blocks that leave arrays behind; the others are passed over. All by default.
      lease: the output's, where the caller holds it.
      tell: hears how far the pass is.

    Raises:
      BlocksFailedError: some blocks were given up.
    """
    run_block_job(
        job,
        partial(_make_worker, open_maker, job.path, stage),
        runner,
        stage=stage,
        settled=lambda index: None if wanted is None or index in wanted else {"detail": {"skipped": True}},
        make_checker=partial(_make_checker, job.path, stage),
        lease=lease,
        tell=tell,
    )


def stage_arrays(place: Place, stage: str, blocks: Iterable[int]) -> Iterator[Arrays]:
    """What a finished pass left behind, block by block."""
    return (load_arrays(_path(place, stage, index)) for index in blocks)


def added_up(parts: Iterator[Part], add: Callable[[list[Part]], Part]) -> Part:
    """The sum of many parts, a few at a time: what is held is the sum and these few.

    >>> added_up(iter(range(200)), sum)
    19900
    """
    total = add([])
    while some := list(islice(parts, _AT_ONCE)):
        total = add([total, *some])
    return total


def _make_worker(open_maker: Callable[[], MakeArrays], place: Place, stage: str) -> Process:
    make = open_maker()

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        index, box = item
        watch = Stopwatch()
        arrays = make(box)
        row = watch.lap("compute")
        save_arrays(_path(place, stage, index), arrays)
        size = sum(array.nbytes for array in arrays.values())
        return {**row, **watch.lap("write"), "bytes": size, "checksum": _sum_of(arrays)}

    return process


def _make_checker(place: Place, stage: str) -> Process:
    return lambda item: {"checksum": _sum_of(load_arrays(_path(place, stage, item[0])))}


def _path(place: Place, stage: str, index: int) -> Place:
    return ledger_path(place) / stage / f"{stage}-{index:09d}.npz"


def _sum_of(arrays: Arrays) -> str:
    return digest_of({name: checksum(array) for name, array in arrays.items()})[:16]
