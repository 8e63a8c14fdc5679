"""Following a file of JSON lines that another process writes: how a driver tells of training while it waits."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
