"""What failing blocks cost a job: `make bench ONLY=failing_attempts`.

A hundred blocks of a fifth of a second of computing each, on two workers; in one arm, one try in ten fails at a random
moment of its computing, seeded. Prints the table, keeps results/failing_attempts.json, exits with 1 where the aim is
missed.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from pairs import estimate, interleaved, ratio
from report import Aim, Outcome, tell

from tessera.engine.tasks import Outcome as BlockOutcome
from tessera.engine.tasks import Process, RetryPolicy, Task

MINUTES = 4
BLOCKS, BLOCK_S, FAILING = 100, 0.2, 0.1


@dataclass(frozen=True)
class Item:
    """A block: how much to compute, and, where tries fail, which and where they are counted."""

    index: int
    rounds: int
    seed: int
    marks: Path | None


def compute(rounds: int) -> float:
    """A fixed amount of work, small against every cache."""
    matrix = np.full((64, 64), 1e-3)
    for _ in range(rounds):
        matrix = matrix @ matrix + 1e-3
    return float(matrix[0, 0])


def rounds_in(seconds: float) -> int:
    """How many rounds take so long on this machine."""
    begun = time.perf_counter()
    compute(20_000)
    return max(1, int(20_000 * seconds / (time.perf_counter() - begun)))


def make_worker() -> Process:
    """As a prediction has it, one pass at a time."""
    lock = threading.Lock()

    def process(item: Item) -> dict[str, Any]:
        fails_at = None if item.marks is None else failure_of(item, item.marks)
        with lock:
            compute(round(item.rounds * (1.0 if fails_at is None else fails_at)))
        if fails_at is not None:
            raise OSError("the store did not answer")
        return {}

    return process


def failure_of(item: Item, marks: Path) -> float | None:
    """The part of its computing after which this try fails; None where it does not."""
    tries = len(list(marks.glob(f"{item.index}-*")))
    (marks / f"{item.index}-{tries}").touch()
    fails, moment = np.random.default_rng([item.seed, item.index, tries]).random(2)
    return float(moment) if fails < FAILING else None


def blocks_per_second(rounds: int, next_seed: Callable[[], int], *, failing: bool) -> float:
    """One whole job, the start of its workers included."""
    from tessera.engine.blocks import WorkerPool, run_blocks

    heard: list[BlockOutcome] = []
    with tempfile.TemporaryDirectory() as folder:
        seed, marks = next_seed(), Path(folder) if failing else None
        tasks = [Task(index, Item(index, rounds, seed, marks)) for index in range(BLOCKS)]
        begun = time.perf_counter()
        run_blocks(make_worker, tasks, WorkerPool(2), RetryPolicy(attempts=6), heard.append)
        seconds = time.perf_counter() - begun
    assert len(heard) == BLOCKS and not any(outcome.failed for outcome in heard)
    print(f"{sum(outcome.attempt for outcome in heard) - BLOCKS} tries failed", file=sys.stderr)
    return BLOCKS / seconds


def main() -> int:
    """Measure, print and keep."""
    from tessera.engine.session import connected

    facts, rounds, seeds = machine(("ray", "numpy")), rounds_in(BLOCK_S), iter(range(1000))
    arm = partial(blocks_per_second, rounds, lambda: next(seeds))
    with connected(cpus=2):
        arm(failing=False)  # Ray's first actors are slower to start
        arms = {"undisturbed": partial(arm, failing=False), "one try in ten fails": partial(arm, failing=True)}
        speeds = interleaved(arms)
    figures = {f"{name}, blocks/s": estimate(values) for name, values in speeds.items()}
    longer = ratio(speeds["undisturbed"], speeds["one try in ten fails"])
    aims = [Aim("wall time with failing tries over undisturbed", longer, "<=", 1.2)]
    what = f"Whole jobs of {BLOCKS} blocks of {BLOCK_S} s on two workers, with and without failing tries, interleaved"
    return tell(Outcome("failing_attempts", what, facts, figures, aims))


if __name__ == "__main__":
    sys.exit(main())
