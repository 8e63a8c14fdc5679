"""Whose turn it is with the network, where several blocks are in flight in one worker.

    block 0    read  predict............  write
    block 1          read                 predict............  write
    block 2                                     read           predict............

One pass at a time, because the network's own threads fill the cores. The turn is a block's, not a tile's: blocks that
took turns tile by tile would all end at the same time, and the network would then wait for all of them to be written
and the next to be read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class NetworkTurn:
    """A turn that a thread takes at its block's first pass and keeps until its last one is done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mine = threading.local()

    def taken_by(self, predict: Callable[P, T]) -> Callable[P, T]:
        """`predict`, which waits for the turn unless its thread has it."""

        def predict_in_turn(*args: P.args, **more: P.kwargs) -> T:
            if not getattr(self._mine, "held", False):
                self._lock.acquire()
                self._mine.held = True
            return predict(*args, **more)

        return predict_in_turn

    def ended_after(self, run: Callable[P, T]) -> Callable[P, T]:
        """`run`, after which, also where it raises, its thread's turn is over."""

        def run_and_end(*args: P.args, **more: P.kwargs) -> T:
            try:
                return run(*args, **more)
            finally:
                if getattr(self._mine, "held", False):
                    self._mine.held = False
                    self._lock.release()

        return run_and_end
