"""What the serial and the distributed runner share: tasks, outcomes and the failure policy. Imports no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Process = Callable[[Any], dict[str, Any]]
"""Processes one item and returns a small row of plain values; called from several threads of one worker."""
MakeWorker = Callable[[], Process]
"""Makes a worker's `Process` once, in the worker: loads the model, opens the stores."""
Squeeze = Callable[[Any, int], Any]
"""Given an item and how often it was squeezed: the same work in less memory, with the same result."""


@dataclass(frozen=True, slots=True)
class Task:
    """One block of work.

    Attributes:
      index: identifies it everywhere.
      item: to process.
      lane: tasks of one lane follow each other, and go to one worker one after the other, which may keep what they
        share; None where a task shares nothing. A lane is a matter of speed: any worker can do any task.
    """

    index: int
    item: Any
    lane: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: its row, or after its last attempt the error.

    Attributes:
      index: the task's.
      attempt: tries that count: those that failed by what may be the task's own doing, and the one that succeeded.
      row: of a success.
      error: of a task that was given up.
      losses: workers lost under it by no fault of its own.
      squeezed: how often it was squeezed.
    """

    index: int
    attempt: int
    row: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    losses: int = 0
    squeezed: int = 0

    @property
    def failed(self) -> bool:
        """Whether the task was given up."""
        return bool(self.error)


OnResult = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Setback:
    """A try that came to nothing; the task is tried again.

    Attributes:
      index: the task's.
      tries: so far, those by no fault of the task's included.
      error: what happened, in one line.
    """

    index: int
    tries: int
    error: str


@dataclass(frozen=True, slots=True)
class Events:
    """What a runner tells while it works, besides outcomes; by default nobody listens.

    Attributes:
      on_ready: a worker is ready for work, after its start.
      on_setback: a task will be tried again.
      on_wait: called some times a second while tasks run elsewhere; what it raises ends the run.
    """

    on_ready: Callable[[], None] = lambda: None
    on_setback: Callable[[Setback], None] = lambda setback: None
    on_wait: Callable[[], None] = lambda: None


NOBODY = Events()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again and when to give up.

    What a task's own code raises, and a process that dies while the task has it alone, is held against the task.
    What Ray knows to be no fault of a task's is not: a node that is gone, a preemption, a worker that ran out of
    memory beside others. So that a task which takes its node along does not go on for ever, there is an end to that,
    too.

    Attributes:
      attempts: failed tries that are held against a task before it is quarantined.
      losses: workers lost under a task by no fault of its own before it is quarantined all the same.
      backoff_s: pause before the second try; doubles for each further one.
      longest_pause_s: the most that it grows to.
      breaker: quarantined tasks, without one success before them, that stop the whole job.
      breaker_midway: quarantined tasks in a row, without one success between them, that stop a job which had begun
        well: its disk is full, its store is gone. More than `breaker`, for the tasks of a damaged region of the input
        are neighbours, and fail in a row too.
    """

    attempts: int = 3
    losses: int = 10
    backoff_s: float = 0.5
    longest_pause_s: float = 60.0
    breaker: int = 10
    breaker_midway: int = 50

    def pause_s(self, tries: int, index: int = 0) -> float:
        """Seconds to wait after failed try number `tries`, counted from 1.

        Half of it is the same for all tasks, the rest is each one's own: a store that refused a hundred at once would
        be asked by all of them at once again. The same task waits as long in every run.

        >>> [0.5 * 2**n <= RetryPolicy(backoff_s=1.0).pause_s(n + 1, index=7) <= 2**n for n in range(6)]
        [True, True, True, True, True, True]
        >>> RetryPolicy(backoff_s=1.0).pause_s(1000) <= 60
        True
        """
        whole = min(self.backoff_s * 2 ** min(tries - 1, 30), self.longest_pause_s)
        digest = hashlib.blake2b(f"{index}/{tries}".encode(), digest_size=4).digest()
        return float(whole) * (0.5 + 0.5 * int.from_bytes(digest, "big") / 2**32)


class CircuitBrokenError(RuntimeError):
    """Every block fails: the job stops instead of failing a million times."""


class Breaker:
    """Counts quarantined blocks that no success interrupts."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy, self.in_a_row, self.succeeded = policy, 0, False

    def note(self, outcome: Outcome) -> None:
        """Record an outcome.

        Raises:
          CircuitBrokenError: nothing but failures so far, `policy.breaker` of them, or `policy.breaker_midway` in a
            row after a success.
        """
        if not outcome.failed:
            self.in_a_row, self.succeeded = 0, True
            return
        self.in_a_row += 1
        if self.in_a_row < (self.policy.breaker_midway if self.succeeded else self.policy.breaker):
            return
        which = f"{self.in_a_row} blocks in a row" if self.succeeded else f"the first {self.in_a_row} blocks all"
        raise CircuitBrokenError(
            f"{which} failed, the last with: {outcome.error}. The job stops here; what is done is kept. Mend the cause "
            "and run the same command again, with `--retry_failed true` for the blocks that failed."
        )


def numbered(items: Iterable[tuple[int, Any]]) -> list[Task]:
    """Tasks from (index, item) pairs."""
    return [Task(index, item) for index, item in items]
