"""Blocks on Ray Core actors: dispatch, retry, replacement and blame.

    driver  --task-->  actor (model, reader and writer threads)
            <--row---                                            no voxel crosses the object store

Ray's own restarts and retries are off (`max_restarts=0`, `max_task_retries=0`): they would run a block that kills its
process again and again, and never say which block it was. When an actor's process dies, every block it had in flight
is a suspect; suspects rerun alone on an actor, so that the next death names one block. When its node is gone or was
preempted, or Ray killed it because memory ran short, no block is to blame: what was in flight is done again elsewhere,
in the last case in less memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError, RayTaskError

from tessera.engine.actors import Slot, WorkerPool, fault_of, start_actor, told
from tessera.engine.backlog import Backlog
from tessera.engine.tasks import (
    NOBODY,
    Breaker,
    Events,
    MakeWorker,
    OnResult,
    Outcome,
    RetryPolicy,
    Setback,
    Squeeze,
    Task,
)

_log = logging.getLogger(__name__)


def run_blocks(
    make_worker: MakeWorker,
    tasks: Iterable[Task],
    pool: WorkerPool,
    policy: RetryPolicy,
    on_result: OnResult,
    *,
    events: Events = NOBODY,
    squeeze: Squeeze | None = None,
    ahead: Sequence[Slot] = (),
) -> None:
    """Process every task on a pool of actors, in any order; `on_result` hears of each exactly once.

    Args:
      make_worker: run once in each actor.
      tasks: consumed as actors become free.
      pool: the actors.
      policy: retries, back-off and the circuit breaker.
      on_result: called in the driver, in the order of completion.
      events: who hears what happens in between.
      squeeze: makes items smaller once a worker ran out of memory; None where they cannot be.
      ahead: actors of the pool that were started already, for the same `make_worker`.

    Raises:
      CircuitBrokenError: everything fails.
      RuntimeError: workers cannot be started; the last one's error is named.
    """
    backlog = Backlog(iter(tasks), policy, pool.workers * pool.in_flight, squeeze)
    run = _Run(make_worker, pool, policy, on_result, events, backlog, ahead)
    try:
        run.until_done()
    finally:
        run.stop()


@dataclass(frozen=True, slots=True)
class _Flight:
    """A task on an actor."""

    slot: Slot
    task: Task
    squeezed: int


class _Run:
    """The driver's bookkeeping for one job."""

    def __init__(
        self,
        make_worker: MakeWorker,
        pool: WorkerPool,
        policy: RetryPolicy,
        on_result: OnResult,
        events: Events,
        backlog: Backlog,
        ahead: Sequence[Slot],
    ) -> None:
        self.make_worker, self.pool, self.policy = make_worker, pool, policy
        self.on_result, self.events, self.backlog = on_result, events, backlog
        self.breaker = Breaker(policy)
        self.slots = list(ahead)
        self.flying: dict[ray.ObjectRef, _Flight] = {}
        self.ever_ready, self.failed_starts, self.start_at = False, 0, 0.0

    def until_done(self) -> None:
        while len(self.backlog) or self.flying:
            self.events.on_wait()
            self._fill_up()
            self._dispatch()
            refs = [*self.flying, *(s.ready_ref for s in self.slots if not s.ready)]
            # A short wait keeps back-off punctual; an actor that answers ends it at once.
            done, _ = ray.wait(refs, num_returns=1, timeout=0.2) if refs else ([], [])
            for ref in done:
                self._hear(ref)
            if not refs:
                time.sleep(0.05)

    def stop(self) -> None:
        for slot in self.slots:
            ray.kill(slot.actor)

    def _fill_up(self) -> None:
        """Replace lost workers, as many as there is work for."""
        wanted = min(self.pool.workers, len(self.backlog) + len(self.flying))
        while len(self.slots) < wanted and time.monotonic() >= self.start_at:
            self.slots.append(start_actor(self.make_worker, self.pool))

    def _dispatch(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            if slot.ready and not slot.open and self.backlog.has_suspects:
                slot.alone = True
                self._send(slot, self.backlog.take_suspect())
            # While suspects wait, actors run dry: each becomes free to try one of them alone.
            while self._has_room(slot) and not self.backlog.has_suspects:
                task = self.backlog.take(now, slot)
                if task is None:
                    break
                self._send(slot, task)

    def _has_room(self, slot: Slot) -> bool:
        return slot.ready and not slot.alone and slot.open < self.pool.in_flight

    def _send(self, slot: Slot, task: Task) -> None:
        slot.open += 1
        ref = slot.actor.run.remote(self.backlog.item_of(task))
        self.flying[ref] = _Flight(slot, task, self.backlog.squeezed)

    def _hear(self, ref: ray.ObjectRef) -> None:
        if ref in self.flying:
            self._hear_of_task(self.flying.pop(ref), ref)
            return
        slot = next((s for s in self.slots if s.ready_ref == ref), None)
        if slot is None:  # its actor died in the meantime and was replaced
            return
        try:
            slot.ready = ray.get(ref)
        except RayError as error:
            self.slots.remove(slot)
            self._failed_start(error)
        else:
            self.ever_ready, self.failed_starts = True, 0
            self.events.on_ready()

    def _failed_start(self, error: RayError) -> None:
        self.failed_starts += 1
        # Where the worker's own code refuses before one ever started, every other would as well; later it may be a
        # store that is away for a moment.
        hopeless = isinstance(error, RayTaskError) and not self.ever_ready
        if hopeless or self.failed_starts > 2 * self.pool.workers:
            raise RuntimeError(f"workers cannot be started: {told(error)}") from error
        _log.warning("a worker could not be started, another is tried: %s", told(error))
        self.start_at = time.monotonic() + self.policy.pause_s(self.failed_starts)

    def _hear_of_task(self, flight: _Flight, ref: ray.ObjectRef) -> None:
        try:
            row = ray.get(ref)
        except RayTaskError as error:
            self._close(flight.slot)
            self._settle(self.backlog.failed(flight.task, told(error), time.monotonic()))
        except RayError as error:  # the process or its node is gone, not the block's code
            self._bury(flight, error)
        else:
            self._close(flight.slot)
            self._settle(self.backlog.done(flight.task, row, flight.squeezed))

    def _close(self, slot: Slot) -> None:
        slot.open -= 1
        slot.alone = False

    def _bury(self, flight: _Flight, error: RayError) -> None:
        """An actor is gone: blame its block if it had one alone, suspect all of them if not; or blame none."""
        slot, now = flight.slot, time.monotonic()
        others = [ref for ref, other in self.flying.items() if other.slot is slot]
        tasks = [flight.task, *(self.flying.pop(ref).task for ref in others)]
        self.slots.remove(slot)
        self.backlog.leave(slot)
        ray.kill(slot.actor)
        fault = fault_of(error)
        if fault == "memory":
            self.backlog.out_of_memory(flight.squeezed)
            _log.warning("a worker ran out of memory: %s", told(error))
        if fault != "process":
            for task in tasks:
                self._settle(self.backlog.lost(task, f"its worker was lost: {told(error)}", now))
        elif len(tasks) == 1:
            self._settle(self.backlog.failed(flight.task, f"its worker process died: {told(error)}", now, alone=True))
        else:
            for task in tasks:
                self.backlog.suspect(task)

    def _settle(self, what: Outcome | Setback) -> None:
        if isinstance(what, Setback):
            self.events.on_setback(what)
            return
        self.on_result(what)
        self.breaker.note(what)
