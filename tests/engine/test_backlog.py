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
