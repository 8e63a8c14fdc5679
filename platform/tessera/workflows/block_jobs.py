"""What ingest, predict and segment share: run the blocks of an output that its ledger does not have yet.

    plan --> ledger --> missing blocks --> serial or Ray runner --> one row per block --> report

Done means written, then recorded: a rerun with the same facts does only what is missing, and another job's output is
refused with what differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.serial import run_serially
from tessera.engine.tasks import Events, MakeWorker, OnResult, Outcome, Process, RetryPolicy, Setback, Squeeze, Task
from tessera.geometry.blocks import BlockGrid
from tessera.settings.common import RunnerSettings
from tessera.storage.lease import Lease
from tessera.storage.ledger import Ledger, LedgerRow
from tessera.storage.locations import Place
from tessera.storage.volumes import Volume, open_volume, update_attributes
from tessera.workflows.access import with_access
from tessera.workflows.live import Tell, shown
from tessera.workflows.meter import Meter
from tessera.workflows.outputs import OutputPlan
from tessera.workflows.recheck import recheck

_log = logging.getLogger(__name__)
_SETBACKS_TOLD = 8


class BlocksFailedError(RuntimeError):
    """Some blocks were given up; everything else is done and recorded."""


@dataclass(frozen=True)
class BlockReport:
    """What a run of a block job did.

    Attributes:
      blocks: of the whole output.
      done_before: found in the ledger.
      failed_before: found in the ledger, and not tried again.
      failed: error by block index, those of earlier runs included.
      seconds: wall time.
      voxels: computed in this run.
    """

    blocks: int
    done_before: int
    failed_before: int
    failed: Mapping[int, str]
    seconds: float
    voxels: int

    @property
    def computed(self) -> int:
        """Blocks that this run computed."""
        return self.blocks - self.done_before - len(self.failed)

    @property
    def metrics(self) -> dict[str, float]:
        """For the tracker."""
        return {
            "blocks": self.blocks,
            "blocks_computed": self.computed,
            "blocks_failed": len(self.failed),
            "seconds": self.seconds,
            "megavoxels_per_second": self.voxels / 1e6 / max(self.seconds, 1e-9),
        }


def run_block_job(
    output: OutputPlan,
    make_worker: MakeWorker,
    runner: RunnerSettings,
    *,
    stage: str | None = None,
    item: Callable[[int], Any] | None = None,
    squeeze: Squeeze | None = None,
    tell: Tell | None = None,
    settled: Callable[[int], dict[str, Any] | None] | None = None,
    lane: Callable[[int], int] | None = None,
    lease: Lease | None = None,
    make_checker: MakeWorker | None = None,
    ahead: Sequence[Any] = (),
) -> BlockReport:
    """Compute every block that the output's ledger does not record as done.

    Args:
      output: the plan of a volume that was created.
      make_worker: gives the function that computes one item, in a worker.
      runner: serial or Ray.
      stage: names a pass of its own over the output.
      item: what a worker is handed for a block; by default (index, box).
      squeeze: makes items smaller once a worker ran out of memory; None where they cannot be.
      tell: hears every ten seconds, and at the end, how far the job is.
      settled: gives the row of a block that needs no worker, or None.
      lane: a number that blocks have in common which one worker should do one after the other, such blocks following
        each other in the grid; workers are handed (index, box, the missing blocks of the lane).
      lease: the output's, where the caller holds it.
      make_checker: gives the function that sums a block as it is stored, see `recheck`; by default the output's voxels.
      ahead: workers that were started already, see `workers_ahead`.

    Raises:
      BlocksFailedError: some blocks were given up, after the rest was done; they are listed.
      ValueError: the output belongs to another job.
    """
    start, voxels, grid, name = time.perf_counter(), 0, output.grid, output.path.name
    with _opened_ledger(output, stage, runner, lease) as ledger:
        if runner.recheck:
            _recheck(ledger, output, stage, runner, make_checker)
        before, gave_up = len(ledger.done()), 0 if runner.retry_failed else len(ledger.failed())
        missing = ledger.to_do(len(grid), failed_too=runner.retry_failed)
        if gave_up:
            _log.warning("%s: %d blocks stay failed; `--retry_failed true` tries them again", name, gave_up)
        meter = Meter(f"{name} ({stage})" if stage else name, len(grid), before + gave_up)

        def on_result(outcome: Outcome) -> None:
            nonlocal voxels
            ledger.append(_row(outcome))
            skipped = outcome.row.get("detail", {}).get("skipped", False)
            computed = 0 if outcome.failed or skipped else grid.box(outcome.index).size
            meter.finished(outcome, computed)
            voxels += computed

        def unsettled() -> Iterator[int]:
            for i in missing:
                row = settled(i) if settled else None
                if row is None:
                    yield i
                else:
                    on_result(Outcome(i, 1, row))

        tasks = _in_lanes(grid, unsettled(), lane) if lane else _apart(grid, unsettled(), item)
        if before + gave_up < len(grid):
            with shown(meter, tell):
                _run(make_worker, tasks, runner, on_result, _events(meter, ledger), squeeze, ahead)
        failed = ledger.failed()
    report = BlockReport(len(grid), before, gave_up, failed, time.perf_counter() - start, voxels)
    _log.info("%s: %d blocks, %d were done before", name, report.blocks, report.done_before)
    if failed:
        raise BlocksFailedError(_failure_text(output.path, grid, failed))
    return report


def _apart(grid: BlockGrid, blocks: Iterable[int], item: Callable[[int], Any] | None) -> Iterator[Task]:
    return (Task(i, item(i) if item else (i, grid.box(i))) for i in blocks)


def _in_lanes(grid: BlockGrid, blocks: Iterable[int], lane: Callable[[int], int]) -> Iterator[Task]:
    for number, members in groupby(blocks, lane):
        group = tuple(members)
        yield from (Task(i, (i, grid.box(i), group), number) for i in group)


@contextmanager
def session(runner: RunnerSettings) -> Iterator[None]:
    """Keep one Ray for all passes of a workflow; nothing for the serial engine."""
    if runner.engine == "serial":
        yield
        return
    from tessera.engine.placement import block_pool
    from tessera.engine.session import cluster_size, connected

    with connected():
        block_pool(runner.workers, cluster_size())  # refuses workers that can never run, before anything is touched
        yield


@contextmanager
def workers_ahead(make_worker: MakeWorker, runner: RunnerSettings, blocks: int) -> Iterator[Sequence[Any]]:
    """Workers that start while the driver still has other things to do; they are gone when the block ends.

    Args:
      make_worker: what the block job will be given.
      runner: serial or Ray, inside its `session`. The serial engine has none; a recheck comes before the first block,
        with workers of its own.
      blocks: of the whole output: no more workers than that.
    """
    if runner.engine == "serial" or runner.recheck:
        yield ()
        return
    from tessera.engine.actors import started_ahead
    from tessera.engine.placement import block_pool
    from tessera.engine.session import cluster_size

    pool = block_pool(runner.workers, cluster_size())
    with started_ahead(with_access(make_worker), replace(pool, workers=min(pool.workers, blocks))) as ahead:
        yield ahead


def _run(
    make_worker: MakeWorker,
    tasks: Iterable[Task],
    runner: RunnerSettings,
    on_result: OnResult,
    events: Events,
    squeeze: Squeeze | None,
    ahead: Sequence[Any] = (),
) -> None:
    policy = RetryPolicy(attempts=runner.attempts)
    if runner.engine == "serial":
        run_serially(make_worker, tasks, policy, on_result, events)
        return
    from tessera.engine.blocks import run_blocks
    from tessera.engine.placement import block_pool
    from tessera.engine.session import cluster_size

    with session(runner):
        pool = block_pool(runner.workers, cluster_size())
        run_blocks(
            with_access(make_worker), tasks, pool, policy, on_result, events=events, squeeze=squeeze, ahead=ahead
        )


def _events(meter: Meter, ledger: Ledger) -> Events:
    """Count what happens between blocks, and log setbacks: the first ones, then ever more rarely.

    A driver that was replaced stops within a second, however long its blocks take.
    """
    count = 0

    def on_setback(setback: Setback) -> None:
        nonlocal count
        count += 1
        meter.setback(setback)
        if count <= _SETBACKS_TOLD or count & (count - 1) == 0:  # a power of two: of a million, twenty are logged
            _log.warning("block %d is tried again after: %s (setback %d)", setback.index, setback.error, count)

    return Events(on_ready=meter.ready, on_setback=on_setback, on_wait=ledger.check_driver)


def _row(outcome: Outcome) -> LedgerRow:
    now = time.time()
    lost = {"lost_workers": outcome.losses} if outcome.losses else {}
    if outcome.failed:
        return LedgerRow(
            outcome.index, "failed", outcome.attempt, error=outcome.error, detail=json.dumps(lost), finished_at=now
        )
    values = {**outcome.row, "detail": json.dumps({**outcome.row.get("detail", {}), **lost})}
    return LedgerRow(outcome.index, "done", outcome.attempt, finished_at=now, **values)


def _recheck(
    ledger: Ledger, output: OutputPlan, stage: str | None, runner: RunnerSettings, make_checker: MakeWorker | None
) -> None:
    found = recheck(
        ledger,
        output.grid,
        output.path.name,
        make_checker or partial(_make_checker, output.path),
        lambda make_worker, tasks, on_result: _run(
            make_worker, tasks, runner, on_result, Events(on_wait=ledger.check_driver), None
        ),
    )
    if found and stage is None:  # its readers would take what is being done again for whole
        update_attributes(output.path, complete=False)


def _make_checker(output: Place) -> Process:
    return make_checker_of(open_volume(output))


def make_checker_of(volume: Volume) -> Process:
    """What sums blocks of a volume as they are stored: takes (index, box)."""
    return lambda item: {"checksum": checksum(volume.read(item[1]))}


def _opened_ledger(output: OutputPlan, stage: str | None, runner: RunnerSettings, lease: Lease | None) -> Ledger:
    return Ledger.open(
        output.path, output.key, output.facts, stage=stage, lease=lease, lease_expiry_s=runner.lease_expiry_s
    )


def _failure_text(output: Place, grid: BlockGrid, failed: Mapping[int, str]) -> str:
    listed = [f"  block {i} {grid.box(i)}: {error}" for i, error in sorted(failed.items())[:20]]
    more = [f"  and {len(failed) - 20} more"] if len(failed) > 20 else []
    return "\n".join(
        [
            f"{len(failed)} of {len(grid)} blocks of {output} failed; the others are done and recorded:",
            *listed,
            *more,
            "Mend the cause and run the same command with `--retry_failed true`: only these blocks will run.",
        ]
    )


def checksum(block: NDArray[Any]) -> str:
    """Of a block's decoded voxels, for the ledger."""
    return hashlib.blake2b(np.ascontiguousarray(block).data, digest_size=8).hexdigest()


class Stopwatch:
    """Seconds per stage of one block, for the ledger's row.

    >>> watch = Stopwatch()
    >>> sorted(watch.lap("read"))
    ['read_seconds']
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self, stage: str) -> dict[str, float]:
        """Seconds since the last lap, under the ledger's column name."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return {f"{stage}_seconds": seconds}
