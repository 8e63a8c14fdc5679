"""One contract for the serial and the Ray runner, and what only actors can suffer: dying."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from tessera.engine.actors import started_ahead
from tessera.engine.blocks import WorkerPool, run_blocks
from tessera.engine.serial import run_serially
from tessera.engine.tasks import NOBODY, CircuitBrokenError, Events, MakeWorker, Outcome, RetryPolicy, Task

QUICK = RetryPolicy(attempts=3, backoff_s=0.01, breaker=5, breaker_midway=8)
Run = Callable[..., list[Outcome]]


def _serially(make_worker: MakeWorker, tasks: list[Task], events: Events = NOBODY) -> list[Outcome]:
    outcomes: list[Outcome] = []
    run_serially(make_worker, tasks, QUICK, outcomes.append, events)
    return outcomes


def _on_ray(make_worker: MakeWorker, tasks: list[Task], events: Events = NOBODY, workers: int = 2) -> list[Outcome]:
    outcomes: list[Outcome] = []
    run_blocks(make_worker, tasks, WorkerPool(workers), QUICK, outcomes.append, events=events)
    return outcomes


@pytest.fixture(params=["serial", "ray"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "ray":
        request.getfixturevalue("ray_session")
        return _on_ray
    return _serially


def _tasks(count: int) -> list[Task]:
    return [Task(index, index) for index in range(count)]


def _make_doubler() -> Callable[[int], dict[str, Any]]:
    return lambda item: {"doubled": 2 * item}


def _make_refuser() -> Callable[[int], dict[str, Any]]:
    def process(item: int) -> dict[str, Any]:
        if item == 3:
            raise ValueError("block three is rotten")
        return {"item": item}

    return process


def _make_hopeless() -> Callable[[int], dict[str, Any]]:
    def process(item: int) -> dict[str, Any]:
        raise OSError("disk on fire")

    return process


def _make_teller() -> Callable[[int], dict[str, Any]]:
    begun = time.time()
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")}
    return lambda item: {"begun": begun, "threads": threads}


def test_workers_started_ahead_do_the_blocks_with_the_threads_of_their_pool(ray_session: object) -> None:
    outcomes: list[Outcome] = []
    pool = WorkerPool(1, cpus=2.0)
    with started_ahead(_make_teller, pool) as ahead:
        assert ray.get(ahead[0].ready_ref)
        before = time.time()
        run_blocks(_make_teller, _tasks(3), pool, QUICK, outcomes.append, ahead=ahead)
    assert [o.row["begun"] < before for o in outcomes] == [True] * 3
    assert outcomes[0].row["threads"] == {"OMP_NUM_THREADS": "2", "TF_NUM_INTRAOP_THREADS": "2"}


def test_each_block_is_reported_exactly_once(run: Run) -> None:
    outcomes = run(_make_doubler, _tasks(9))
    assert sorted((o.index, o.row["doubled"], o.attempt) for o in outcomes) == [(i, 2 * i, 1) for i in range(9)]


def test_a_failing_block_is_named_and_the_rest_is_done(run: Run) -> None:
    outcomes = run(_make_refuser, _tasks(6))
    failed = [o for o in outcomes if o.failed]
    assert [(o.index, o.attempt, o.error) for o in failed] == [(3, 3, "ValueError: block three is rotten")]
    assert sorted(o.index for o in outcomes if not o.failed) == [0, 1, 2, 4, 5]


def test_a_passing_fault_is_retried(run: Run, tmp_path: Path) -> None:
    def make_flaky() -> Callable[[int], dict[str, Any]]:
        def process(item: int) -> dict[str, Any]:
            mark = tmp_path / str(item)
            if not mark.exists():
                mark.touch()
                raise OSError("the network hiccuped")
            return {}

        return process

    assert {(o.index, o.attempt, o.failed) for o in run(make_flaky, _tasks(4))} == {(i, 2, False) for i in range(4)}


def test_setbacks_are_told_before_the_outcome(run: Run) -> None:
    told: list[tuple[int, int, str]] = []
    run(_make_refuser, _tasks(6), Events(on_setback=lambda one: told.append((one.index, one.tries, one.error))))
    assert told == [(3, 1, "ValueError: block three is rotten"), (3, 2, "ValueError: block three is rotten")]


def test_a_job_that_begins_to_fail_midway_stops_after_a_longer_row_of_failures(run: Run) -> None:
    def make_filling_disk() -> Callable[[int], dict[str, Any]]:
        def process(item: int) -> dict[str, Any]:
            if item >= 7:
                raise OSError("No space left on device")
            return {}

        return process

    with pytest.raises(CircuitBrokenError, match="8 blocks in a row failed, the last with: OSError: No space left"):
        run(make_filling_disk, _tasks(1000))


def test_failures_between_successes_break_nothing() -> None:
    def make_mostly_rotten() -> Callable[[int], dict[str, Any]]:
        def process(item: int) -> dict[str, Any]:
            if item % 8 > 0:
                raise ValueError("rotten")
            return {}

        return process

    assert sum(outcome.failed for outcome in _serially(make_mostly_rotten, _tasks(64))) == 56


def test_a_job_in_which_everything_fails_stops_early(run: Run) -> None:
    with pytest.raises(CircuitBrokenError, match="the first 5 blocks all failed, the last with: OSError: disk on fire"):
        run(_make_hopeless, _tasks(1000))


def test_one_block_of_a_hundred_that_kills_its_process_is_quarantined_alone(ray_session: None) -> None:
    def make_killer() -> Callable[[int], dict[str, Any]]:
        def process(item: int) -> dict[str, Any]:
            time.sleep(0.01)
            if item == 50:
                os.kill(os.getpid(), signal.SIGKILL)
            return {}

        return process

    outcomes = _on_ray(make_killer, _tasks(100))
    (given_up,) = [outcome for outcome in outcomes if outcome.failed]
    assert (given_up.index, given_up.attempt) == (50, 3)
    assert given_up.error.startswith("its worker process died: The actor is dead because its worker process has died")
    assert sorted(outcome.index for outcome in outcomes) == list(range(100))


def test_blocks_in_flight_on_a_killed_worker_are_done_by_another(ray_session: None, tmp_path: Path) -> None:
    def make_once_killed() -> Callable[[int], dict[str, Any]]:
        def process(item: int) -> dict[str, Any]:
            if item == 2 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"pid": os.getpid()}

        return process

    outcomes = _on_ray(make_once_killed, _tasks(8), workers=1)
    assert sorted(o.index for o in outcomes) == list(range(8))
    assert not any(o.failed for o in outcomes)
    assert len({o.row["pid"] for o in outcomes}) == 2


def test_workers_that_cannot_start_end_the_job_with_their_error(ray_session: None) -> None:
    def make_none() -> Callable[[int], dict[str, Any]]:
        raise FileNotFoundError("no model here")

    with pytest.raises(RuntimeError, match=r"workers cannot be started.*no model here"):
        _on_ray(make_none, _tasks(3), workers=1)


def test_a_worker_that_cannot_start_later_on_is_tried_again(ray_session: None, tmp_path: Path) -> None:
    """The store was away when a lost worker was replaced."""

    def make_unlucky() -> Callable[[int], dict[str, Any]]:
        starts = len(list(tmp_path.glob("start*")))
        (tmp_path / f"start{starts}").touch()
        if starts == 1:
            raise OSError("the store is away")

        def process(item: int) -> dict[str, Any]:
            if item == 2 and starts == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return {}

        return process

    outcomes = _on_ray(make_unlucky, _tasks(4), workers=1)
    assert sorted((o.index, o.failed) for o in outcomes) == [(index, False) for index in range(4)]
    assert len(list(tmp_path.glob("start*"))) == 3
