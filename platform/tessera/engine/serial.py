"""The same blocks without Ray, one after the other in this process: the oracle of the distributed runner."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tessera.engine.tasks import Breaker, MakeWorker, OnResult, Outcome, Process, RetryPolicy, Task


def run_serially(make_worker: MakeWorker, tasks: Iterable[Task], policy: RetryPolicy, on_result: OnResult) -> None:
    """Process every task in order; failures are retried, then reported, and the rest goes on.

    Raises:
      CircuitBrokenError: everything fails.
    """
    process, breaker = make_worker(), Breaker(policy)
    for task in tasks:
        outcome = _attempts(process, task, policy)
        on_result(outcome)
        breaker.note(outcome)


def _attempts(process: Process, task: Task, policy: RetryPolicy) -> Outcome:
    error = ""
    for attempt in range(1, policy.attempts + 1):
        try:
            return Outcome(task.index, attempt, process(task.item))
        except Exception as failure:  # a block's failure is data here: it is retried, then recorded with its text
            error = f"{type(failure).__name__}: {failure}"
        if attempt < policy.attempts:
            time.sleep(policy.pause_s(attempt))
    return Outcome(task.index, policy.attempts, error=error)
