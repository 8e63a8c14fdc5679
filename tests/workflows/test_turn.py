"""The network serves one block from its first tile to its last, while others are read and written."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tessera.workflows.turn import NetworkTurn


def _block(turn: NetworkTurn, log: list[int], passes: int, meet: threading.Barrier) -> None:
    predict = turn.taken_by(log.append)

    def probability_of(block: int) -> None:
        meet.wait(timeout=20)  # both are past their reading before either has the network
        for _ in range(passes):
            predict(block)

    ended = turn.ended_after(probability_of)
    ended(threading.get_ident())


def test_passes_of_two_blocks_never_mix() -> None:
    turn, log, meet = NetworkTurn(), [], threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(_block, turn, log, 200, meet) for _ in range(2)]
        assert [one.result() for one in done] == [None, None]
    first, second = dict.fromkeys(log)
    assert log == [first] * 200 + [second] * 200


def test_a_block_that_fails_gives_the_turn_on() -> None:
    turn = NetworkTurn()

    def broken(block: int) -> None:
        raise OSError("the tile is torn")

    failing = turn.ended_after(turn.taken_by(broken))
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        with pytest.raises(OSError, match="the tile is torn"):
            one.submit(failing, 0).result(timeout=20)
        assert other.submit(turn.ended_after(turn.taken_by(lambda block: block)), 1).result(timeout=20) == 1


def test_a_block_without_a_pass_takes_no_turn() -> None:
    turn = NetworkTurn()
    turn.ended_after(lambda: None)()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(turn.taken_by(lambda: "its turn")).result(timeout=20) == "its turn"
