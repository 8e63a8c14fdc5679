"""Tasks that are not in flight: fresh ones, those that wait for another try, and suspects. Imports no Ray."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from tessera.engine.tasks import Outcome, RetryPolicy, Setback, Squeeze, Task

_PATIENCE = 3
"""Workers lost by no fault of a task's, after which it runs alone: of several in flight one might be the reason."""


@dataclass(slots=True)
class _Record:
    """What befell a task so far; most tasks have none."""

    attempts: int = 0
    losses: int = 0

    @property
    def tries(self) -> int:
        return self.attempts + self.losses


class Backlog:
    """Hands tasks out, takes those back that came to nothing, and decides when one is given up.

    Tasks are drawn from their source as they are needed: there may be millions. Those of a lane are kept for the worker
    that got the first of them.
    """

    def __init__(self, source: Iterator[Task], policy: RetryPolicy, at_hand: int, squeeze: Squeeze | None) -> None:
        self._source, self._policy, self._at_hand, self._squeeze = source, policy, at_hand, squeeze
        self._fresh = deque[Task]()
        self._lanes: dict[Hashable, deque[Task]] = {}
        self._waiting: list[tuple[float, int, Task]] = []  # a heap of (not before, index, task)
        self._suspects = deque[Task]()
        self._records: dict[int, _Record] = {}
        self.squeezed = 0
        """How often items are squeezed from here on: memory that ran out once would run out again."""

    def __len__(self) -> int:
        """Tasks at hand."""
        while len(self._fresh) < self._at_hand and self._draw():
            pass
        return len(self._fresh) + len(self._waiting) + len(self._suspects) + sum(map(len, self._lanes.values()))

    @property
    def has_suspects(self) -> bool:
        """Whether a task waits to be run alone."""
        return bool(self._suspects)

    def take(self, now: float, worker: Hashable = None) -> Task | None:
        """The next task for a worker whose time has come; retries go first, then the lane that it is in."""
        if self._waiting and self._waiting[0][0] <= now:
            return heapq.heappop(self._waiting)[2]
        if worker in self._lanes:
            return self._next_in_lane(worker)
        if not self._fresh and not self._draw():
            return None
        task = self._fresh.popleft()
        if task.lane is not None:
            self._open_lane(worker, task.lane)
        return task

    def leave(self, worker: Hashable) -> None:
        """A worker is gone: what was kept for it is anyone's."""
        self._fresh.extendleft(reversed(self._lanes.pop(worker, deque())))

    def _draw(self) -> bool:
        task = next(self._source, None)
        if task is not None:
            self._fresh.append(task)
        return task is not None

    def _open_lane(self, worker: Hashable, lane: int) -> None:
        kept = deque[Task]()
        while (self._fresh or self._draw()) and self._fresh[0].lane == lane:
            kept.append(self._fresh.popleft())
        if kept:
            self._lanes[worker] = kept

    def _next_in_lane(self, worker: Hashable) -> Task:
        kept = self._lanes[worker]
        task = kept.popleft()
        if not kept:
            del self._lanes[worker]
        return task

    def take_suspect(self) -> Task:
        """The next task that is to run alone."""
        return self._suspects.popleft()

    def item_of(self, task: Task) -> Any:
        """What a worker is handed for a task now."""
        return self._squeeze(task.item, self.squeezed) if self._squeeze and self.squeezed else task.item

    def suspect(self, task: Task) -> None:
        """Have a task run alone: its worker died under it and others."""
        self._suspects.append(task)

    def done(self, task: Task, row: dict[str, Any], squeezed: int) -> Outcome:
        """The outcome of a success."""
        record = self._records.pop(task.index, _Record())
        return Outcome(task.index, record.attempts + 1, row, losses=record.losses, squeezed=squeezed)

    def failed(self, task: Task, error: str, now: float, *, alone: bool = False) -> Outcome | Setback:
        """A try failed, and it is held against the task; `alone` has the next one run alone, without a pause."""
        record = self._record(task)
        record.attempts += 1
        if record.attempts >= self._policy.attempts:
            return self._give_up(task, error)
        self._again(task, record, now, alone=alone)
        return Setback(task.index, record.tries, error)

    def lost(self, task: Task, error: str, now: float) -> Outcome | Setback:
        """A worker was lost under the task by no fault of its own."""
        record = self._record(task)
        record.losses += 1
        if record.losses >= self._policy.losses:
            return self._give_up(task, f"{record.losses} workers were lost under it, the last with: {error}")
        self._again(task, record, now, alone=record.losses >= _PATIENCE)
        return Setback(task.index, record.tries, error)

    def out_of_memory(self, sent_squeezed: int) -> None:
        """A worker ran out of memory with items that were squeezed so often: squeeze what is sent from here on more."""
        self.squeezed = max(self.squeezed, sent_squeezed + 1)

    def _record(self, task: Task) -> _Record:
        return self._records.setdefault(task.index, _Record())

    def _again(self, task: Task, record: _Record, now: float, *, alone: bool) -> None:
        if alone:
            self._suspects.append(task)
        else:
            pause = self._policy.pause_s(record.tries, task.index)
            heapq.heappush(self._waiting, (now + pause, task.index, task))

    def _give_up(self, task: Task, error: str) -> Outcome:
        record = self._records.pop(task.index)
        return Outcome(task.index, max(1, record.attempts), error=error, losses=record.losses)
