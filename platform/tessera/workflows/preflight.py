"""What a job would do, told before it does anything: blocks, bytes, memory, time, cost; and whether it can work at all.

    plan --> is the output ours to write? --> room on the disk? --> a tile or two through the model --> forecast

Nothing is created or changed by asking. The same checks, without the sample, come before a real job.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod

from tessera.geometry.blocks import BlockGrid
from tessera.settings.common import OutputSettings
from tessera.storage.lease import OutputInUseError, sight
from tessera.storage.ledger_job import check_job, has_job, ledger_path
from tessera.storage.ledger_states import read_states
from tessera.storage.objects import exists
from tessera.storage.removal import check_removable
from tessera.storage.room import free_bytes
from tessera.workflows.outputs import OutputPlan
from tessera.workflows.status import told_seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A bit of a job's work, done for real.

    Attributes:
      voxels: of the output, computed.
      seconds: that they took, once everything was warm.
      stored_share: bytes that they take compressed, per byte.
    """

    voxels: int
    seconds: float
    stored_share: float


@dataclass(frozen=True)
class Forecast:
    """What a job would do. Bytes are those of decoded voxels, but for `stored_bytes`.

    Attributes:
      output: its place.
      blocks: of the whole output.
      left: blocks that the job would compute.
      done: blocks that are recorded as done.
      failed: blocks that were given up, and would stay so.
      read_bytes: of the input, halos included, for the blocks left.
      write_bytes: of the output, for the blocks left.
      stored_bytes: what these will take compressed, if they are all like the sample; None without one.
      free_bytes: on the output's disk; None in an object store.
      memory_bytes: that a worker needs at most; None where it is not known.
      seconds: for the blocks left, on this machine, if all are like the sample; None without one.
      cost: of these seconds; None without a price.
    """

    output: str
    blocks: int
    left: int
    done: int
    failed: int
    read_bytes: int
    write_bytes: int
    stored_bytes: int | None
    free_bytes: int | None
    memory_bytes: int | None
    seconds: float | None
    cost: float | None


def forecast(
    output: OutputPlan,
    settings: OutputSettings,
    *,
    input_itemsize: int,
    halo: Sequence[int] = (0, 0, 0),
    memory_bytes: int | None = None,
    sample: Callable[[], Sample] | None = None,
) -> Forecast:
    """Check whether a job can work, and say what it would do; nothing is touched.

    Args:
      output: the checked plan.
      settings: the job's.
      input_itemsize: bytes of an input voxel.
      halo: input voxels read around each block, per axis.
      memory_bytes: that a worker needs.
      sample: does a bit of the work; asked last, when all else is well.

    Raises:
      FileExistsError: something else is at the output's place.
      OutputInUseError: another driver works on it.
      OSError: its disk is too small.
      ValueError: it is another job's.
    """
    done, failed = _found(output, settings)
    grid = output.grid
    left = len(grid) - done - failed
    share = left / len(grid)
    free = free_bytes(output.path)
    write = round(share * prod(output.shape) * output.itemsize)
    seen = sample() if sample and left else None
    stored = round(write * seen.stored_share) if seen else None
    _check_room(output, free, stored)
    seconds = share * prod(output.shape) / seen.voxels * seen.seconds if seen else None
    price = settings.price_per_hour
    return Forecast(
        output=str(output.path),
        blocks=len(grid),
        left=left,
        done=done,
        failed=failed,
        read_bytes=round(share * voxels_read(grid, halo) * input_itemsize),
        write_bytes=write,
        stored_bytes=stored,
        free_bytes=free,
        memory_bytes=memory_bytes,
        seconds=seconds,
        cost=None if seconds is None or price is None else seconds / 3600 * price,
    )


def _found(output: OutputPlan, settings: OutputSettings) -> tuple[int, int]:
    """How many blocks are done, and how many were given up and would stay so."""
    place = output.path
    seen = sight(ledger_path(place))
    if seen is not None and seen.is_held:
        raise OutputInUseError(f"{place} is in use: another driver works on it ({seen}). Wait for it, or end it.")
    if exists(place) or exists(ledger_path(place)):
        check_removable(place)
    if settings.overwrite or not has_job(place):
        return 0, 0
    check_job(place, None, output.key, output.facts)
    states = read_states(place)
    done = int(states.done.sum())
    return done, 0 if settings.retry_failed else len(states.block) - done


def _check_room(output: OutputPlan, free: int | None, stored: int | None) -> None:
    if free is not None and stored is not None and stored > free:
        raise OSError(
            f"{output.path} will take about {told_bytes(stored)}, compressed as the sample was, and {told_bytes(free)} "
            "are free: the job would stop with a full disk. Free some, or give an output elsewhere."
        )


def voxels_read(grid: BlockGrid, halo: Sequence[int]) -> int:
    """Input voxels that all blocks read together, each with its halo, without what lies beyond the volume.

    >>> voxels_read(BlockGrid((4, 8, 8), (4, 4, 8)), (0, 1, 1))
    320

    Args:
      grid: the blocks.
      halo: per axis.
    """
    sums = []
    for axis, margin in zip(grid.axes, halo, strict=True):
        bounds = (axis.bounds(index) for index in range(axis.count))
        sums.append(sum(min(b + margin, axis.extent) - max(a - margin, 0) for a, b in bounds))
    return prod(sums)


def log_forecast(output: OutputPlan) -> None:
    """Say what a real job writes, and warn where its disk may become full."""
    free, write = free_bytes(output.path), prod(output.shape) * output.itemsize
    _log.info("%s: %d blocks, %s of voxels before compression", output.path, len(output.grid), told_bytes(write))
    if free is not None and free < write:
        _log.warning(
            "%s: %s are free, which is less than its voxels take before compression; `--dry_run true` tells more",
            output.path,
            told_bytes(free),
        )


def told_bytes(count: float) -> str:
    """An amount as people say it.

    >>> [told_bytes(n) for n in (12, 2_048, 3.5 * 2**30, 2**43)]
    ['12 bytes', '2.00 KiB', '3.50 GiB', '8.00 TiB']
    """
    units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    power = min(int(count).bit_length() - 1, 10 * (len(units) - 1)) // 10 if count >= 1 else 0
    return f"{count / 2 ** (10 * power):.{2 if power else 0}f} {units[power]}"


def as_text(found: Forecast) -> str:
    """For a person."""
    lines = [
        f"{found.output}: nothing was done",
        f"  blocks      {found.blocks}: {found.left} to do, {found.done} done, {found.failed} failed",
        f"  to read     {told_bytes(found.read_bytes)} of voxels, halos included",
        f"  to write    {told_bytes(found.write_bytes)} of voxels",
    ]
    if found.stored_bytes is not None:
        lines.append(f"  on disk     about {told_bytes(found.stored_bytes)}, compressed")
    if found.free_bytes is not None:
        lines.append(f"  free        {told_bytes(found.free_bytes)}")
    if found.memory_bytes is not None:
        lines.append(f"  memory      {told_bytes(found.memory_bytes)} for each worker at most")
    if found.seconds is not None:
        lines.append(f"  time        about {told_seconds(found.seconds)} on this machine")
    if found.cost is not None:
        lines.append(f"  cost        about {found.cost:.2f}, at the price per hour that was given")
    return "\n".join(lines)


def as_json(found: Forecast) -> str:
    """For a program."""
    return json.dumps(asdict(found), indent=2)


def told(found: Forecast, settings: OutputSettings) -> str:
    """As the settings want it."""
    return as_json(found) if settings.json else as_text(found)
