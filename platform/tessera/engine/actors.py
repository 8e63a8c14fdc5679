"""The actors that blocks run on, as the driver sees them, and what it means when one is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayError

from tessera.engine.tasks import MakeWorker

Fault = Literal["process", "node", "memory"]

_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS")


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


class Worker:
    """Holds one worker; its methods run in threads.

    Args:
      threads: how many its libraries may use.
    """

    def __init__(self, threads: int) -> None:
        # Here, before any library is imported, and not in Ray's runtime environment: that would have Ray start a
        # process for it, where one waits already (some 4 s).
        os.environ.update(dict.fromkeys(_THREADS, str(threads)))

    def ready(self, make_worker: MakeWorker) -> bool:
        """Make the worker."""
        # Not in the constructor: an error there reaches the driver as a death, without its type and text.
        self.process = make_worker()
        return True

    def run(self, item: Any) -> dict[str, Any]:
        """Process one item."""
        return self.process(item)


@dataclass(slots=True, eq=False)
class Slot:
    """An actor as the driver sees it.

    Attributes:
      actor: its handle.
      ready_ref: answers once it is ready.
      ready: whether it is.
      open: blocks in flight on it.
      alone: whether the one in flight is to have it alone.
    """

    actor: Any
    ready_ref: ray.ObjectRef
    ready: bool = False
    open: int = 0
    alone: bool = False


def start_actor(make_worker: MakeWorker, pool: WorkerPool) -> Slot:
    """Start one actor of a pool; its libraries use as many threads as it reserves CPUs."""
    actor = (
        ray.remote(Worker)
        .options(
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=pool.in_flight + 1,
        )
        .remote(max(1, int(pool.cpus)))
    )
    return Slot(actor, actor.ready.remote(make_worker))


@contextmanager
def started_ahead(make_worker: MakeWorker, pool: WorkerPool) -> Iterator[list[Slot]]:
    """A pool's actors, started before there is a task for them, and gone when the block ends.

    What they import takes seconds, in which the driver has other things to do.
    """
    slots = [start_actor(make_worker, pool) for _ in range(pool.workers)]
    try:
        yield slots
    finally:
        for slot in slots:
            ray.kill(slot.actor)


def fault_of(error: RayError) -> Fault:
    """Why a worker was lost: its process died, for which its block may be to blame, or its node or memory went.

    Where a node is gone, Ray says so seconds later, or at once that the actor cannot be reached.

    Args:
      error: what Ray says of a call that was open on it.
    """
    if isinstance(error, OutOfMemoryError):
        return "memory"
    gone = isinstance(error, (NodeDiedError, ActorUnavailableError)) or getattr(error, "preempted", False)
    return "node" if gone or "its node has died" in str(error) else "process"


def told(error: BaseException) -> str:
    """The cause in one line: Ray's own text is a page of remote traceback, or of advice."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return f"{type(cause).__name__}: {cause}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    because = next((line for line in lines if line.startswith("The actor ") and " because " in line), lines[0])
    return because.partition(" Some common causes")[0].strip()
