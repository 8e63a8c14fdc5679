"""Shows a meter while a job runs: one live line on a terminal, a line now and then in a log.

Other log lines go above the live one and do not tear it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

from tessera.workflows.meter import Meter, Reading

_log = logging.getLogger(__name__)

LOOK_S = 0.25
FIRST_LINE_S, LONGEST_PAUSE_S = 10.0, 600.0
POINT_S = 10.0
_CLEAR = "\r\x1b[K"

Tell = Callable[[Reading], None]


@contextmanager
def shown(meter: Meter, tell: Tell | None = None) -> Iterator[None]:
    """Show the meter while the block runs and at its end, and tell its readings every ten seconds and at the end.

    Args:
      meter: is read from a thread.
      tell: gets a reading; an error of its own is logged once and ends the telling, not the job.
    """
    with ExitStack() as stack:
        line: _TerminalLine | _LogLine = stack.enter_context(_live_line()) if _is_terminal() else _LogLine()
        points = _Points(tell)
        over = threading.Event()
        thread = threading.Thread(target=_keep_showing, args=(meter, line, points, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            last = meter.reading()
            line.end(last)
            points.tell(last)


def _keep_showing(meter: Meter, line: _TerminalLine | _LogLine, points: _Points, over: threading.Event) -> None:
    while not over.wait(LOOK_S):
        reading = meter.reading()
        line.show(reading)
        if points.is_due():
            points.tell(reading)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _LogLine:
    """Lines of a log: one after ten seconds, then ever more rarely, and the last."""

    def __init__(self) -> None:
        self._pause = FIRST_LINE_S
        self._due = FIRST_LINE_S

    def show(self, reading: Reading) -> None:
        if reading.seconds >= self._due:
            _log.info("%s", reading.line)
            self._due = reading.seconds + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)

    def end(self, reading: Reading) -> None:
        _log.info("%s", reading.line)


class _TerminalLine:
    """One line that is written over and over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.RLock()

    def show(self, reading: Reading) -> None:
        # A longer line would wrap, and the next one could not be written over it.
        with self._lock:
            self._stream.write(_CLEAR + reading.line[: _columns(self._stream) - 1])
            self._stream.flush()

    def end(self, reading: Reading) -> None:
        with self._lock:
            self._stream.write(f"{_CLEAR}{reading.line}\n")
            self._stream.flush()

    # What a log handler writes to:

    def write(self, text: str) -> int:
        with self._lock:
            return self._stream.write(_CLEAR + text)

    def flush(self) -> None:
        self._stream.flush()


@contextmanager
def _live_line() -> Iterator[_TerminalLine]:
    """A live line on standard error; the handlers that log there write above it."""
    line = _TerminalLine(sys.stderr)
    there = [one for one in logging.getLogger().handlers if getattr(one, "stream", None) is sys.stderr]
    handlers: list[Any] = [one for one in there if isinstance(one, logging.StreamHandler)]
    before = [one.setStream(line) for one in handlers]
    try:
        yield line
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


class _Points:
    """Tells readings now and then; an error in it is no reason to end the job."""

    def __init__(self, tell: Tell | None) -> None:
        self._tell, self._next = tell, time.monotonic() + POINT_S

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def tell(self, reading: Reading) -> None:
        self._next = time.monotonic() + POINT_S
        if self._tell is None:
            return
        try:
            self._tell(reading)
        except Exception:
            _log.exception("how the job goes cannot be told to the tracker any more; the job goes on")
            self._tell = None
