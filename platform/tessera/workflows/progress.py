"""A file of JSON lines, one per report of a training: written by the controller, followed by the driver."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Progress:
    """What a run has reported, over all its restarts; one process at a time appends.

    Steps that are taken again after a restart are appended again, so that a run which does not repeat itself shows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told: dict[int, set[str]] | None = None

    def untold(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Those of a step's values that no line holds yet."""
        told = self._load().get(step, set())
        return {name: value for name, value in values.items() if name not in told}

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line.

        Raises:
          OSError: the disk is full.
        """
        self._load().setdefault(step, set()).update(values)
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def _load(self) -> dict[int, set[str]]:
        if self._told is None:
            self._told = {}
            lines = self.path.read_bytes().splitlines() if self.path.exists() else []
            for line in map(json.loads, lines):
                self._told.setdefault(line["step"], set()).update(line)
        return self._told


def cut_unfinished_line(path: Path) -> None:
    """Cut off what a killed writer left of a line, or the next one would be glued to it; nobody may be writing."""
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)


@contextmanager
def following(path: Path, tell: Callable[[Mapping[str, Any]], None], *, every_s: float = 0.5) -> Iterator[None]:
    """Call `tell` for each line that is appended to `path` while the block runs, from a thread of its own."""
    stop = threading.Event()
    offset = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        nonlocal offset
        while True:
            ending = stop.wait(every_s)
            offset = _tell_new(path, offset, tell)
            if ending:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _tell_new(path: Path, offset: int, tell: Callable[[Mapping[str, Any]], None]) -> int:
    if not path.exists():
        return offset
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):  # still being written
                break
            tell(json.loads(line))
            offset += len(line)
    return offset
