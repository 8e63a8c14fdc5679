"""How far a block job has come, for whoever waits: counted as blocks finish, with the rate of late and the time left.

Blocks that an earlier run did count as done and in no rate; nor does the time before the first worker is ready.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tessera.engine.tasks import Outcome, Setback
from tessera.workflows.status import told_seconds

WINDOW_S, _LEAST_EVENTS, _MOST_EVENTS = 120.0, 32, 20_000


@dataclass(frozen=True)
class Reading:
    """One look at a job.

    Attributes:
      name: of the output, and of the pass.
      blocks: of the whole output.
      done: written and recorded, by this run or an earlier one.
      failed: given up in this run.
      retries: tries that came to nothing and were repeated.
      seconds: since this run began.
      blocks_per_second: of late; None before the first block.
      voxels_per_second: likewise.
      ready: whether a worker has started.
    """

    name: str
    blocks: int
    done: int
    failed: int
    retries: int
    seconds: float
    blocks_per_second: float | None
    voxels_per_second: float | None
    ready: bool

    @property
    def left(self) -> int:
        """Blocks to be done."""
        return self.blocks - self.done - self.failed

    @property
    def seconds_left(self) -> float | None:
        """At the rate of late; None where there is none."""
        if not self.left:
            return 0.0
        return self.left / self.blocks_per_second if self.blocks_per_second else None

    @property
    def line(self) -> str:
        """For a person, such as `out.zarr: 12/100 blocks, 3.41 Mvox/s, 2 min 10 s left, 0 failed`."""
        said = [f"{self.name}: {self.done}/{self.blocks} blocks", *self._speed(), f"{self.failed} failed"]
        return ", ".join(said + ([f"{self.retries} tried again"] if self.retries else []))

    def _speed(self) -> list[str]:
        if self.seconds_left is None:
            return [f"{'first ones running' if self.ready else 'workers starting'} for {told_seconds(self.seconds)}"]
        rate = [] if self.voxels_per_second is None else [f"{self.voxels_per_second / 1e6:.3g} Mvox/s"]
        return [*rate, f"{told_seconds(self.seconds_left)} left" if self.left else f"in {told_seconds(self.seconds)}"]

    @property
    def metrics(self) -> dict[str, float]:
        """For the tracker; a rate that is not known yet is left out."""
        known = {"blocks_per_second": self.blocks_per_second, "voxels_per_second": self.voxels_per_second}
        rates = {name: value for name, value in known.items() if value is not None}
        return {**rates, "retries": self.retries, "failures": self.failed}


class Meter:
    """Counts what a runner tells; safe to read from another thread.

    Args:
      name: of the output, and of the pass.
      blocks: of the whole output.
      done: in the ledger before this run.
      clock: monotonic seconds.
    """

    def __init__(self, name: str, blocks: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._blocks, self._done, self._clock = name, blocks, done, clock
        self._begun = clock()
        self._failed = self._retries = 0
        self._lock = threading.Lock()
        self._finished: deque[tuple[float, int]] = deque()  # (when, voxels) of the latest blocks
        self._since: float | None = None  # when the window begins that these lie in

    def ready(self) -> None:
        """A worker is ready."""
        with self._lock:
            self._since = self._clock() if self._since is None else self._since

    def setback(self, setback: Setback) -> None:
        """A block is tried again."""
        with self._lock:
            self._retries += 1

    def finished(self, outcome: Outcome, voxels: int) -> None:
        """A block is done or given up; `voxels` are those that were computed."""
        with self._lock:
            now = self._clock()
            self._since = self._begun if self._since is None else self._since
            self._done += not outcome.failed
            self._failed += outcome.failed
            self._finished.append((now, voxels))
            while self._is_old(now):
                self._since = self._finished.popleft()[0]

    def reading(self) -> Reading:
        """What the meter shows now."""
        with self._lock:
            seconds = self._clock() - (self._since or 0.0)
            known = bool(self._finished) and seconds > 0
            return Reading(
                self._name,
                self._blocks,
                self._done,
                self._failed,
                self._retries,
                self._clock() - self._begun,
                len(self._finished) / seconds if known else None,
                sum(voxels for _, voxels in self._finished) / seconds if known else None,
                self._since is not None,
            )

    def _is_old(self, now: float) -> bool:
        """Whether the earliest block is out of the window; of slow ones some are kept however old."""
        count = len(self._finished)
        return count > _MOST_EVENTS or (count > _LEAST_EVENTS and self._finished[0][0] < now - WINDOW_S)
