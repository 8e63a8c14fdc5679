"""How far an output has come, as its ledger on disk says: done, failed, left, rate, time left.

Whoever asks reads only; a driver may run meanwhile, or be dead. What its last seconds did is still in its memory.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from tessera.geometry.boxes import Box
from tessera.settings.places import input_path
from tessera.settings.status import StatusSettings
from tessera.storage.lease import sight
from tessera.storage.ledger_job import ledger_path
from tessera.storage.ledger_states import BlockStates, read_states, stages_of
from tessera.storage.locations import Place
from tessera.storage.volumes import open_volume

WINDOW_S = 600.0
_LISTED = 20


@dataclass(frozen=True)
class FailedBlock:
    """A block that was given up; `--retry_failed true` tries it again.

    Attributes:
      block: linear index.
      box: its voxels, start and stop of each axis.
      attempts: tries that it got.
      error: the last one's.
    """

    block: int
    box: tuple[tuple[int, int], ...]
    attempts: int
    error: str


@dataclass(frozen=True)
class PassStatus:
    """One pass over an output.

    Attributes:
      stage: its name; None where the workflow has one pass, or for the last of several.
      workflow: what makes the output.
      blocks: of the whole output.
      done: blocks that are written and recorded.
      failed: blocks that were given up.
      blocks_per_second: over the last ten minutes in which blocks were finished; None before the second block.
      megavoxels_per_second: likewise.
      seconds_left: for what is neither done nor failed, at that rate.
      last_finished_at: when the last block was, seconds since 1970, UTC.
    """

    stage: str | None
    workflow: str
    blocks: int
    done: int
    failed: tuple[FailedBlock, ...]
    blocks_per_second: float | None
    megavoxels_per_second: float | None
    seconds_left: float | None
    last_finished_at: float | None

    @property
    def left(self) -> int:
        """Blocks without a row."""
        return self.blocks - self.done - len(self.failed)


@dataclass(frozen=True)
class DriverStatus:
    """Who drives an output.

    Attributes:
      host: its machine; None where its lease cannot be read.
      pid: its process there.
      seconds_silent: since its last sign of life.
      alive: whether it must be assumed to work on; one that is not has left its lease behind.
    """

    host: str | None
    pid: int | None
    seconds_silent: float
    alive: bool


@dataclass(frozen=True)
class OutputStatus:
    """What is known of an output.

    Attributes:
      output: its place.
      finished: whether it is whole: all passes are done, and what follows them.
      driver: who works on it; None where nobody does.
      passes: in their order.
    """

    output: Place
    finished: bool
    driver: DriverStatus | None
    passes: tuple[PassStatus, ...]


def status(settings: StatusSettings) -> OutputStatus:
    """Read the ledger of each pass, its lease, and whether the output is finished.

    Raises:
      FileNotFoundError: there is no such output, or no ledger beside it.
      ValueError: a ledger is corrupt.
    """
    output = input_path(settings.output, anonymous=settings.storage.anonymous)
    passes = tuple(pass_status(stage, read_states(output, stage)) for stage in stages_of(output))
    return OutputStatus(output, _finished(output), _driver(output), passes)


def _finished(output: Place) -> bool:
    try:
        return open_volume(output).attributes.get("complete") is True
    except FileNotFoundError:  # its ledger alone is left
        return False


def _driver(output: Place) -> DriverStatus | None:
    seen = sight(ledger_path(output))
    if seen is None:
        return None
    holder = seen.holder
    host, pid = (holder.host, holder.pid) if holder else (None, None)
    return DriverStatus(host, pid, max(0.0, seen.age_s), seen.is_held)


def pass_status(stage: str | None, states: BlockStates) -> PassStatus:
    """Count a pass's blocks, and tell how fast they came."""
    blocks, done = len(states.grid), int(states.done.sum())
    last = float(states.finished_at.max()) if len(states.block) else None
    speed = _rates(states)
    left = blocks - len(states.block)
    return PassStatus(
        stage,
        states.workflow,
        blocks,
        done,
        tuple(_failed(states)),
        speed[0] if speed else None,
        speed[1] if speed else None,
        0.0 if not left else left / speed[0] if speed else None,
        last,
    )


def _rates(states: BlockStates) -> tuple[float, float] | None:
    """Blocks and megavoxels per second between the first and the last block of the latest ten minutes of work."""
    finished = states.finished_at[states.done]
    if len(finished) < 2:
        return None
    recent = states.done & (states.finished_at > finished.max() - WINDOW_S)
    times = states.finished_at[recent]
    seconds = float(times.max() - times.min())
    if seconds <= 0:
        return None
    share = (len(times) - 1) / len(times)  # the first one's own time lies before the window
    return len(times) * share / seconds, states.voxels(recent) * share / 1e6 / seconds


def _failed(states: BlockStates) -> list[FailedBlock]:
    attempts = dict(zip(states.block[~states.done].tolist(), states.attempt[~states.done].tolist(), strict=True))
    return [
        FailedBlock(index, _bounds(states.grid.box(index)), attempts[index], error)
        for index, error in sorted(states.errors.items())
    ]


def _bounds(box: Box) -> tuple[tuple[int, int], ...]:
    return tuple(zip(box.start, box.stop, strict=True))


def as_json(found: OutputStatus) -> str:
    """For a program: a JSON object with the output, whether it is finished, its driver and its passes."""
    told = {
        "output": str(found.output),
        "finished": found.finished,
        "driver": found.driver and asdict(found.driver),
        "passes": [asdict(one) | {"left": one.left} for one in found.passes],
    }
    return json.dumps(told, indent=2)


def as_text(found: OutputStatus, now: float | None = None) -> str:
    """For a person.

    Args:
      found: what `status` returned.
      now: seconds since 1970; the present by default.
    """
    moment = time.time() if now is None else now
    passes = (line for one in found.passes for line in _lines(one, moment))
    return "\n".join([f"{found.output}: {_state(found)}", *passes])


def _state(found: OutputStatus) -> str:
    """Finished or not, and who works on it."""
    state, driver = "finished" if found.finished else "not finished", found.driver
    if driver is None:
        return state if found.finished else f"{state}, and nobody works on it: the same command goes on"
    who = "a process that cannot be named" if driver.pid is None else f"process {driver.pid} on {driver.host}"
    heard = f"last sign of life {told_seconds(driver.seconds_silent)} ago"
    if driver.alive:
        return f"{state}, {who} works on it ({heard})"
    return f"{state}, and {who} is dead ({heard}): the same command goes on"


def _lines(one: PassStatus, now: float) -> list[str]:
    name = f"{one.workflow}, {one.stage}" if one.stage else one.workflow
    lines = [f"{name}: {one.done} of {one.blocks} blocks done, {len(one.failed)} failed, {one.left} left"]
    if one.blocks_per_second is not None and one.megavoxels_per_second is not None:
        lines.append(f"  rate        {one.blocks_per_second:.3g} blocks/s, {one.megavoxels_per_second:.3g} Mvox/s")
    if one.left and one.seconds_left is not None:
        lines.append(f"  time left   {told_seconds(one.seconds_left)} at that rate")
    if one.last_finished_at is not None:
        lines.append(f"  last block  {told_seconds(max(0.0, now - one.last_finished_at))} ago")
    for failed in one.failed[:_LISTED]:
        box = ", ".join(f"{start}:{stop}" for start, stop in failed.box)
        lines.append(f"  failed      block {failed.block} [{box}] after {failed.attempts} tries: {failed.error}")
    if len(one.failed) > _LISTED:
        lines.append(f"  and {len(one.failed) - _LISTED} more: --json true lists all of them")
    if one.failed:
        lines.append("  to retry    the same command with --retry_failed true")
    return lines


def told_seconds(seconds: float) -> str:
    """A duration as people say it.

    >>> [told_seconds(s) for s in (4.2, 59.7, 150, 3_590, 4_000, 200_000)]
    ['4 s', '1 min 0 s', '2 min 30 s', '1 h 0 min', '1 h 7 min', '2 d 8 h']
    """
    for unit, below, size, smaller in (("d", "h", 86_400, 3_600), ("h", "min", 3_600, 60), ("min", "s", 60, 1)):
        whole = round(seconds / smaller) * smaller
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {below}"
    return f"{round(seconds)} s"
