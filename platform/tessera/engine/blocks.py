"""Blocks on Ray Core actors: dispatch, retry, replacement and blame.

    driver  --task-->  actor (model, reader and writer threads)
            <--row---                                            no voxel crosses the object store

Ray's own restarts and retries are off (`max_restarts=0`, `max_task_retries=0`): they would run a block that kills its
process again and again, and never say which block it was. When an actor dies, every block it had in flight is a
suspect; suspects rerun alone on an actor, so that the next death names one block.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tessera.engine.tasks import Breaker, MakeWorker, OnResult, Outcome, RetryPolicy, Task


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """The actors to run on.

    Attributes:
      workers: number of actors.
      cpus: logical CPUs each reserves, and threads its libraries may use.
      gpus: GPUs each reserves.
      in_flight: blocks open on each actor at once, so that reading, predicting and writing overlap.
    """

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0
    in_flight: int = 2


def run_blocks(
    make_worker: MakeWorker, tasks: Iterable[Task], pool: WorkerPool, policy: RetryPolicy, on_result: OnResult
) -> None:
    """Process every task on a pool of actors, in any order; `on_result` hears of each exactly once.

    Args:
      make_worker: run once in each actor.
      tasks: consumed as actors become free.
      pool: the actors.
      policy: retries, back-off and the circuit breaker.
      on_result: called in the driver, in the order of completion.

    Raises:
      CircuitBrokenError: everything fails.
      RuntimeError: workers cannot be started; the first one's error is named.
    """
    run = _Run(make_worker, pool, policy, on_result, iter(tasks))
    try:
        run.until_done()
    finally:
        run.stop()


class _Worker:
    """Holds one worker; its methods run in `in_flight` threads."""

    def ready(self, make_worker: MakeWorker) -> bool:
        # Not in the constructor: an error there reaches the driver as a death, without its type and text.
        self.process = make_worker()
        return True

    def run(self, item: Any) -> dict[str, Any]:
        return self.process(item)


@dataclass(slots=True)
class _Slot:
    """An actor as the driver sees it."""

    actor: Any
    ready_ref: ray.ObjectRef
    ready: bool = False
    open: int = 0
    alone: bool = False


class _Run:
    """The driver's bookkeeping for one job."""

    def __init__(
        self,
        make_worker: MakeWorker,
        pool: WorkerPool,
        policy: RetryPolicy,
        on_result: OnResult,
        source: Iterator[Task],
    ) -> None:
        self.make_worker, self.pool, self.policy, self.on_result = make_worker, pool, policy, on_result
        self.source, self.pending = source, deque[Task]()  # tasks are drawn as they are sent: there may be millions
        self.breaker = Breaker(policy)
        self.slots: list[_Slot] = []
        self.flying: dict[ray.ObjectRef, tuple[_Slot, Task]] = {}
        self.waiting: list[tuple[float, int, Task]] = []  # heap of (not before, index, task): retries in back-off
        self.suspects: deque[Task] = deque()
        self.attempts: dict[int, int] = {}
        self.failed_starts = 0

    def until_done(self) -> None:
        while self._draw() or self.waiting or self.suspects or self.flying:
            while len(self.slots) < self._wanted_workers():
                self.slots.append(self._start())
            self._dispatch()
            refs = [*self.flying, *(s.ready_ref for s in self.slots if not s.ready)]
            # A short wait keeps back-off punctual; an actor that answers ends it at once.
            done, _ = ray.wait(refs, num_returns=1, timeout=0.2) if refs else ([], [])
            for ref in done:
                self._hear(ref)
            if not refs:
                time.sleep(0.05)

    def _draw(self) -> bool:
        """Keep enough tasks at hand to fill every worker; whether any is."""
        while len(self.pending) < self.pool.workers * self.pool.in_flight:
            task = next(self.source, None)
            if task is None:
                break
            self.pending.append(task)
        return bool(self.pending)

    def _wanted_workers(self) -> int:
        open_tasks = len(self.pending) + len(self.waiting) + len(self.suspects) + len(self.flying)
        return min(self.pool.workers, open_tasks)

    def stop(self) -> None:
        for slot in self.slots:
            ray.kill(slot.actor)

    def _start(self) -> _Slot:
        threads = str(max(1, int(self.pool.cpus)))
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS")
        actor = (
            ray.remote(_Worker)
            .options(
                num_cpus=self.pool.cpus,
                num_gpus=self.pool.gpus,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=self.pool.in_flight + 1,
                runtime_env={"env_vars": dict.fromkeys(names, threads)},
            )
            .remote()
        )
        return _Slot(actor, actor.ready.remote(self.make_worker))

    def _dispatch(self) -> None:
        now = time.monotonic()
        while self.waiting and self.waiting[0][0] <= now:
            self.pending.appendleft(heapq.heappop(self.waiting)[2])
        for slot in self.slots:
            if slot.ready and not slot.open and self.suspects:
                slot.alone = True
                self._send(slot, self.suspects.popleft())
            # While suspects wait, actors run dry: each becomes free to try one of them alone.
            while self._has_room(slot) and not self.suspects and self._draw():
                self._send(slot, self.pending.popleft())

    def _has_room(self, slot: _Slot) -> bool:
        return slot.ready and not slot.alone and slot.open < self.pool.in_flight

    def _send(self, slot: _Slot, task: Task) -> None:
        slot.open += 1
        self.flying[slot.actor.run.remote(task.item)] = (slot, task)

    def _hear(self, ref: ray.ObjectRef) -> None:
        if ref in self.flying:
            self._hear_of_task(ref)
            return
        slot = next((s for s in self.slots if s.ready_ref == ref), None)
        if slot is None:  # its actor died in the meantime and was replaced
            return
        try:
            slot.ready = ray.get(ref)
        except RayTaskError as error:  # the worker's own code refused: every other worker would as well
            raise RuntimeError(f"workers cannot be started: {_text(error)}") from error
        except RayError as error:
            self.slots.remove(slot)
            self.failed_starts += 1
            if self.failed_starts > 2 * self.pool.workers:
                raise RuntimeError(f"workers cannot be started: {_text(error)}") from error

    def _hear_of_task(self, ref: ray.ObjectRef) -> None:
        slot, task = self.flying.pop(ref)
        try:
            row = ray.get(ref)
        except RayTaskError as error:
            self._close(slot)
            self._failed_attempt(task, _text(error))
        except RayError as error:  # the process or its node is gone, not the block's code
            self._bury(slot, task, _text(error))
        else:
            self._close(slot)
            self._settle(Outcome(task.index, self.attempts.pop(task.index, 0) + 1, row))

    def _close(self, slot: _Slot) -> None:
        slot.open -= 1
        slot.alone = False

    def _bury(self, slot: _Slot, task: Task, error: str) -> None:
        """An actor is gone: blame its block if it had one alone, suspect all of them if not."""
        others = [ref for ref, (owner, _) in self.flying.items() if owner is slot]
        if slot in self.slots:
            self.slots.remove(slot)
            ray.kill(slot.actor)
        if slot.alone or (not others and slot.open == 1):
            self._failed_attempt(task, f"its worker process died: {error}", suspect=True)
            return
        self.suspects.append(task)
        self.suspects.extend(self.flying.pop(ref)[1] for ref in others)

    def _failed_attempt(self, task: Task, error: str, *, suspect: bool = False) -> None:
        attempt = self.attempts[task.index] = self.attempts.get(task.index, 0) + 1
        if attempt >= self.policy.attempts:
            del self.attempts[task.index]
            self._settle(Outcome(task.index, attempt, error=error))
        elif suspect:
            self.suspects.append(task)
        else:
            heapq.heappush(self.waiting, (time.monotonic() + self.policy.pause_s(attempt), task.index, task))

    def _settle(self, outcome: Outcome) -> None:
        self.on_result(outcome)
        self.breaker.note(outcome)


def _text(error: BaseException) -> str:
    """The cause in one line: Ray's own text is a page of remote traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {cause}"
    return str(error).strip().splitlines()[0]
