"""A process that waits beside the one that measures, and works when it is told to: the other arm of a pair."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Bystander:
    """The one that tells: `ask("name", 3)` is the other process' answer."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def ask(self, *words: Any) -> Any:
        """Let the other process work, and return what it says.

        Raises:
          RuntimeError: it is gone.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(words) + "\n")
        self._child.stdin.flush()
        for line in self._child.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise RuntimeError(f"the process that was asked for {words} is gone: look at its output above.")


@contextmanager
def bystander(file: str, *arguments: str) -> Iterator[Bystander]:
    """A benchmark's own file, run once more with these arguments."""
    command = [sys.executable, file, *arguments]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Bystander(child)
    finally:
        child.kill()
        child.wait()


def answer(work: Callable[..., Any]) -> int:
    """The other side: answer until nobody asks any more."""
    for line in sys.stdin:
        print("answer " + json.dumps(work(*json.loads(line))), flush=True)
    return 0
