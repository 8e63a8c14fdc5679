"""Who is to blame, who waits, and when a block is given up: the driver's bookkeeping, without Ray."""

from __future__ import annotations

import pytest
from ray._raylet import ActorID
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError

from tessera.engine.actors import fault_of, told
from tessera.engine.backlog import Backlog
from tessera.engine.tasks import Outcome, RetryPolicy, Setback, Task

POLICY = RetryPolicy(attempts=2, losses=4, backoff_s=1.0)


def _backlog(count: int = 3) -> Backlog:
    return Backlog((Task(i, i) for i in range(count)), POLICY, 2, lambda item, times: f"{item} squeezed {times}")


def _in_lanes(*lanes: int | None) -> Backlog:
    return Backlog((Task(i, i, lane) for i, lane in enumerate(lanes)), POLICY, 2, None)


def test_tasks_of_a_lane_go_to_one_worker_and_others_get_the_next_lane() -> None:
    backlog = _in_lanes(0, 0, 0, 1, 1, None, 2)
    assert len(backlog) >= 2
    took = [(worker, backlog.take(0.0, worker)) for worker in "abbaabaab"]
    found = [(worker, task.index if task else None) for worker, task in took]
    assert found == [("a", 0), ("b", 3), ("b", 4), ("a", 1), ("a", 2), ("b", 5), ("a", 6), ("a", None), ("b", None)]
    assert len(backlog) == 0


def test_what_a_lost_worker_had_before_it_goes_to_another_in_order() -> None:
    backlog = _in_lanes(0, 0, 0, 1)
    assert [backlog.take(0.0, worker).index for worker in "ab"] == [0, 3]  # type: ignore[union-attr]
    assert len(backlog) == 2 and backlog.take(0.0, "b") is None, "the rest of lane 0 waits for its worker"
    backlog.leave("a")
    assert [backlog.take(0.0, "b").index for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
    assert len(backlog) == 0


def _taken(backlog: Backlog, now: float = 0.0) -> Task:
    task = backlog.take(now)
    assert task is not None
    return task


def test_a_failed_try_waits_and_then_goes_first() -> None:
    backlog = _backlog()
    first = _taken(backlog)
    assert isinstance(backlog.failed(first, "OSError", now=10.0), Setback)
    assert _taken(backlog, 10.0).index == 1
    assert _taken(backlog, 11.0).index == 0, "its pause of at most a second is over"
    assert _taken(backlog, 11.0).index == 2
    assert backlog.take(11.0) is None and len(backlog) == 0


def test_a_block_is_given_up_after_its_budget_of_failures() -> None:
    backlog = _backlog()
    task = _taken(backlog)
    backlog.failed(task, "OSError: first", 0.0)
    assert backlog.failed(task, "OSError: second", 0.0) == Outcome(0, 2, error="OSError: second")


def test_lost_nodes_leave_a_block_its_budget() -> None:
    backlog = _backlog()
    task = _taken(backlog)
    backlog.lost(task, "node gone", 0.0)
    backlog.lost(task, "node gone", 0.0)
    assert isinstance(backlog.failed(task, "OSError", 0.0), Setback), "the first failure that is its own"
    assert backlog.done(task, {"bytes": 1}, 0) == Outcome(0, 2, {"bytes": 1}, losses=2)


def test_a_block_under_which_nodes_go_again_and_again_runs_alone_and_is_given_up_in_the_end() -> None:
    backlog = _backlog()
    task = _taken(backlog)
    for _ in range(2):
        backlog.lost(task, "node gone", 0.0)
        assert not backlog.has_suspects
        assert _taken(backlog, 1000.0).index == 0
    backlog.lost(task, "node gone", 0.0)
    assert backlog.has_suspects and backlog.take_suspect().index == 0
    last = backlog.lost(task, "node gone", 0.0)
    assert isinstance(last, Outcome) and last.failed
    assert last.error == "4 workers were lost under it, the last with: node gone"


def test_once_memory_ran_out_all_later_items_are_squeezed() -> None:
    backlog = _backlog()
    first, second = _taken(backlog), _taken(backlog)
    assert backlog.item_of(first) == 0
    backlog.out_of_memory(0)
    backlog.out_of_memory(0)  # the neighbour in flight, squeezed as little
    assert backlog.item_of(second) == "1 squeezed 1"
    backlog.out_of_memory(1)
    assert backlog.item_of(first) == "0 squeezed 2"


def _died(text: str, *, preempted: bool = False) -> ActorDiedError:
    context = ActorDiedErrorContext(error_message=text, actor_id=ActorID.nil().binary(), class_name="Worker")
    if preempted:
        context.node_death_info.reason = NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED
    return ActorDiedError(context)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (_died("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"), "process"),
        (_died("The actor died because its node has died. Node Id: 11f3"), "node"),
        (_died("The actor is dead because its worker process has died.", preempted=True), "node"),
        (ActorUnavailableError("Socket closed", None), "node"),
        (OutOfMemoryError("Task was killed due to the node running low on memory"), "memory"),
    ],
)
def test_only_the_death_of_a_process_can_be_a_block_s_doing(error: RayError, fault: str) -> None:
    assert fault_of(error) == fault


def test_a_death_is_told_in_one_line() -> None:
    died = _died(
        "The actor is dead because its worker process has died. Worker exit detail: End of file. "
        "Some common causes include: (1) the process was killed by the OOM killer"
    )
    assert told(died) == "The actor is dead because its worker process has died. Worker exit detail: End of file."
