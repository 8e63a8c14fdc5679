"""What the serial and the distributed runner share: tasks, outcomes and the retry policy. Imports no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Process = Callable[[Any], dict[str, Any]]
"""Processes one item and returns a small row of plain values; called from several threads of one worker."""
MakeWorker = Callable[[], Process]
"""Makes a worker's `Process` once, in the worker: loads the model, opens the stores."""


@dataclass(frozen=True, slots=True)
class Task:
    """One block of work: an index that identifies it everywhere, and the item to process."""

    index: int
    item: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: its row, or after its last attempt the error."""

    index: int
    attempt: int
    row: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the task was given up."""
        return bool(self.error)


OnResult = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again and when to give up.

    Attributes:
      attempts: tries a block gets before it is quarantined.
      backoff_s: pause before the second try; doubles for each further one.
      breaker: quarantined blocks, without one success before them, that stop the whole job.
    """

    attempts: int = 3
    backoff_s: float = 0.5
    breaker: int = 10

    def pause_s(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt`, counted from 1.

        >>> [RetryPolicy(backoff_s=1.0).pause_s(n) for n in (1, 2, 3)]
        [1.0, 2.0, 4.0]
        """
        return float(self.backoff_s * 2 ** (attempt - 1))


class CircuitBrokenError(RuntimeError):
    """Every block fails: the job stops instead of failing a million times."""


class Breaker:
    """Counts quarantined blocks until the first success."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy, self.failures, self.succeeded = policy, 0, False

    def note(self, outcome: Outcome) -> None:
        """Record an outcome.

        Raises:
          CircuitBrokenError: nothing but failures so far, `policy.breaker` of them.
        """
        self.succeeded |= not outcome.failed
        self.failures += outcome.failed
        if not self.succeeded and self.failures >= self.policy.breaker:
            raise CircuitBrokenError(
                f"the first {self.failures} blocks all failed, the last with: {outcome.error}. The job stops here; "
                "what is done is kept. Mend the cause and run the same command again."
            )


def numbered(items: Iterable[tuple[int, Any]]) -> list[Task]:
    """Tasks from (index, item) pairs."""
    return [Task(index, item) for index, item in items]
