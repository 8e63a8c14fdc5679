"""Processes that take turns: each waits until it is its turn, works, and passes the turn on.

Two trainings cannot be paired within one process, and side by side they would share the cores. Here both are warm and
one of them waits. A turn is a file with the name of whoever has it, replaced atomically; waiting looks at it 100 times
a second, which costs the one at work nothing to speak of.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from tessera.storage.files import write_atomically

LOOK_S = 0.01


def grant(folder: Path, name: str) -> None:
    """Make it `name`'s turn."""
    write_atomically(folder / "turn", name.encode())


def wait_for(folder: Path, name: str, patience_s: float = 300.0) -> None:
    """Return when it is `name`'s turn.

    Raises:
      TimeoutError: it never became so; whoever had the turn has died or hangs.
    """
    until = time.monotonic() + patience_s
    while (holder := _holder(folder)) != name:
        if time.monotonic() > until:
            raise TimeoutError(
                f"{name} waited {patience_s:g} s while {holder!r} had the turn: that one has died or hangs, and no "
                "pair can be completed. Look at its output."
            )
        time.sleep(LOOK_S)


def tell_speed(folder: Path, name: str, speed: float) -> None:
    """Give the turn back to the judge, with what was measured."""
    write_atomically(folder / f"{name}.speed", json.dumps(speed).encode())
    grant(folder, "judge")


def segment_of(folder: Path, name: str) -> float:
    """The judge's side: let `name` work for one turn, and return the speed it measured."""
    grant(folder, name)
    wait_for(folder, "judge")
    return float(json.loads((folder / f"{name}.speed").read_text()))


def _holder(folder: Path) -> str:
    turn = folder / "turn"
    return turn.read_text() if turn.exists() else ""
