"""How far an output has come, as its ledger on disk says: done, failed, left, rate, time left.

Whoever asks reads only; a driver may run meanwhile, or be dead. What its last seconds did is still in its memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tessera.geometry.boxes import Box
from tessera.settings.places import input_path
from tessera.settings.status import StatusSettings
from tessera.storage.ledger_states import BlockStates, read_states, stages_of
from tessera.storage.locations import Place

WINDOW_S = 600.0
_LISTED = 20


@dataclass(frozen=True)
class FailedBlock:
    """A block that was given up; the same command tries it again.

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


def status(settings: StatusSettings) -> dict[Place, list[PassStatus]]:
    """Read the ledger of each pass; the output's place is the one key.

    Raises:
      FileNotFoundError: there is no such output, or no ledger beside it.
      ValueError: a ledger is corrupt.
    """
    output = input_path(settings.output, anonymous=settings.storage.anonymous)
    return {output: [pass_status(stage, read_states(output, stage)) for stage in stages_of(output)]}


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


def as_json(found: Mapping[Place, list[PassStatus]]) -> str:
    """For a program: a JSON object with the output and its passes."""
    ((output, passes),) = found.items()
    told = {"output": str(output), "passes": [asdict(one) | {"left": one.left} for one in passes]}
    return json.dumps(told, indent=2)


def as_text(found: Mapping[Place, list[PassStatus]], now: float | None = None) -> str:
    """For a person.

    Args:
      found: what `status` returned.
      now: seconds since 1970; the present by default.
    """
    ((output, passes),) = found.items()
    moment = time.time() if now is None else now
    return "\n".join([str(output), *(line for one in passes for line in _lines(one, moment))])


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
