"""The same blocks without Ray, one after the other in this process: the oracle of the distributed runner."""

from __future__ import annotations

import time
from collections.abc import Iterable

from tessera.engine.tasks import (
    NOBODY,
    Breaker,
    Events,
    MakeWorker,
    OnResult,
    Outcome,
    Process,
    RetryPolicy,
    Setback,
    Task,
)


def run_serially(
    make_worker: MakeWorker,
    tasks: Iterable[Task],
    policy: RetryPolicy,
    on_result: OnResult,
    events: Events = NOBODY,
) -> None:
    """Process every task in order; failures are retried, then reported, and the rest goes on.

    Args:
      make_worker: run once, here.
      tasks: consumed one by one.
      policy: retries, back-off and the circuit breaker.
      on_result: called after each task.
      events: who hears what happens in between.

    Raises:
      CircuitBrokenError: everything fails.
    """
    process, breaker = make_worker(), Breaker(policy)
    events.on_ready()
    for task in tasks:
        outcome = _attempts(process, task, policy, events)
        on_result(outcome)
        breaker.note(outcome)


def _attempts(process: Process, task: Task, policy: RetryPolicy, events: Events) -> Outcome:
    error = ""
    for attempt in range(1, policy.attempts + 1):
        try:
            return Outcome(task.index, attempt, process(task.item))
        except Exception as failure:  # a block's failure is data here: it is retried, then recorded with its text
            error = f"{type(failure).__name__}: {failure}"
        if attempt < policy.attempts:
            events.on_setback(Setback(task.index, attempt, error))
            time.sleep(policy.pause_s(attempt, task.index))
    return Outcome(task.index, policy.attempts, error=error)
