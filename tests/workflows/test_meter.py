"""Progress that a person can trust: what the meter shows, on a real pseudo-terminal and in a log."""

from __future__ import annotations

import logging
import os
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tessera.engine.tasks import Outcome, Setback
from tessera.workflows import live
from tessera.workflows.live import shown
from tessera.workflows.meter import Meter, Reading

MEGA = 1_000_000


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _finish(meter: Meter, clock: Clock, count: int, every_s: float, voxels: int = MEGA) -> None:
    for index in range(count):
        clock.now += every_s
        meter.finished(Outcome(index, 1), voxels)


def test_neither_earlier_blocks_nor_the_start_of_workers_count_in_the_rate(clock: Clock) -> None:
    meter = Meter("out.zarr", 1000, 900, clock)
    clock.now += 20
    assert meter.reading().line == "out.zarr: 900/1000 blocks, workers starting for 20 s, 0 failed"
    meter.ready()
    clock.now += 10
    meter.ready()  # the second worker's start is not the rate's
    assert meter.reading().line == "out.zarr: 900/1000 blocks, first ones running for 30 s, 0 failed"
    _finish(meter, clock, 10, every_s=1.0)
    reading = meter.reading()
    assert reading.blocks_per_second == pytest.approx(10 / 20)
    assert reading.seconds_left == pytest.approx(90 / 0.5)
    assert reading.line == "out.zarr: 910/1000 blocks, 0.5 Mvox/s, 3 min 0 s left, 0 failed"


def test_the_time_left_follows_the_rate_of_late(clock: Clock) -> None:
    meter = Meter("out.zarr", 10_000, 0, clock)
    meter.ready()
    _finish(meter, clock, 1000, every_s=0.1)
    assert meter.reading().blocks_per_second == pytest.approx(10, rel=0.01)
    _finish(meter, clock, 130, every_s=1.0)
    assert meter.reading().blocks_per_second == pytest.approx(1, rel=0.02), "ten times slower for two minutes"
    assert meter.reading().seconds_left == pytest.approx(8870, rel=0.02)


def test_a_job_that_stands_still_does_not_show_the_rate_it_had(clock: Clock) -> None:
    meter = Meter("out.zarr", 100, 0, clock)
    meter.ready()
    _finish(meter, clock, 10, every_s=1.0)
    clock.now += 990
    assert meter.reading().blocks_per_second == pytest.approx(10 / 1000)


def test_failures_and_retries_are_shown_and_the_end_says_how_long_it_took(clock: Clock) -> None:
    meter = Meter("out.zarr (faces)", 4, 0, clock)
    meter.ready()
    meter.setback(Setback(3, 1, "OSError"))
    _finish(meter, clock, 3, every_s=20.0)
    meter.finished(Outcome(3, 3, error="OSError"), 0)
    assert meter.reading().line == ("out.zarr (faces): 3/4 blocks, 0.05 Mvox/s, in 1 min 0 s, 1 failed, 1 tried again")
    assert meter.reading().metrics == {
        "blocks_per_second": pytest.approx(4 / 60),
        "voxels_per_second": pytest.approx(50_000),
        "retries": 1,
        "failures": 1,
    }


@contextmanager
def _pseudo_terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 60) -> Iterator[Callable[[], str]]:
    """Standard error on a real one; gives a function that reads what was written to it."""
    outer, inner = os.openpty()
    termios.tcsetwinsize(inner, (24, columns))
    with os.fdopen(inner, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        os.set_blocking(outer, False)

        def written() -> str:
            parts = []
            with suppress(BlockingIOError):
                while part := os.read(outer, 1 << 16):
                    parts.append(part)
            return b"".join(parts).decode()

        yield written
    os.close(outer)


def _screen(written: str) -> list[str]:
    """The lines as a terminal shows them, which clears a line at each carriage return followed by ESC [K."""
    return [line.rstrip("\r").rpartition("\r\x1b[K")[2] for line in written.split("\n")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOOK_S", 0.01)
    monkeypatch.setattr(live, "POINT_S", 0.05)
    monkeypatch.setattr(live, "FIRST_LINE_S", 0.05)


@pytest.mark.usefixtures("quick")
def test_a_terminal_shows_one_live_line_with_the_log_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with _pseudo_terminal(monkeypatch) as written:
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger().addHandler(handler)
        try:
            meter = Meter("out.zarr", 3, 0)
            with shown(meter):
                meter.ready()
                time.sleep(0.1)
                during = written()
                logging.getLogger("elsewhere").warning("a worker was lost")
                time.sleep(0.1)
                for index in range(3):
                    meter.finished(Outcome(index, 1), MEGA)
            logging.getLogger("elsewhere").warning("afterwards")
        finally:
            logging.getLogger().removeHandler(handler)
        rest = written()
    assert _screen(during) == ["out.zarr: 0/3 blocks, first ones running for 0 s, 0 failed"[:59]]
    first, last, after, empty = _screen(rest)
    assert (first, after, empty) == ("a worker was lost", "afterwards", "")
    assert last.startswith("out.zarr: 3/3 blocks, ") and last.endswith(", in 0 s, 0 failed")
    assert during.count("\n") == 0 and during.count("\r\x1b[K") >= 3, "one line, written over"


@pytest.mark.usefixtures("quick")
def test_a_log_gets_a_line_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tessera"):
        meter = Meter("out.zarr", 1, 0)
        with shown(meter):
            meter.ready()
            time.sleep(0.9)
            meter.finished(Outcome(0, 1), MEGA)
    lines = [record.getMessage() for record in caplog.records]
    assert 3 <= len(lines) <= 6, "after 0.05, 0.1, 0.2, 0.4, 0.8 s, and at the end"
    assert all(line.startswith("out.zarr: 0/1 blocks, first ones running for ") for line in lines[:-1])
    assert lines[-1].startswith("out.zarr: 1/1 blocks, ") and lines[-1].endswith(" Mvox/s, in 1 s, 0 failed")


@pytest.mark.usefixtures("quick")
def test_readings_are_told_now_and_then_and_at_the_end_and_an_error_in_it_ends_no_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Reading] = []

    def tell(reading: Reading) -> None:
        told.append(reading)
        if len(told) == 3:
            raise OSError("the disk is full")

    meter = Meter("out.zarr", 1, 0)
    with shown(meter, tell):
        time.sleep(0.4)
        meter.finished(Outcome(0, 1), MEGA)
    assert len(told) == 3
    assert caplog.text.count("the job goes on") == 1
    told.clear()
    with shown(meter, told.append):
        pass
    assert [reading.done for reading in told] == [1], "the end, however soon"
