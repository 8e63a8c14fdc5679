"""How a command that was timed up to a point is ended: asked as by Ctrl-C, then killed."""

from __future__ import annotations

import signal
import subprocess

PATIENCE_S = 60.0


def end(child: subprocess.Popen[bytes]) -> None:
    """Leave no process behind; one that has ended already is fine."""
    child.send_signal(signal.SIGINT)
    try:
        child.wait(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
