"""Headless Chromium for tests, spoken to over a pair of pipes: the DevTools protocol without a driver or a port.

One browser serves a whole test module. It reaches this machine's loopback and nothing else, and pages are waited for by
what they hold, never by a fixed time.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ANSWER_SECONDS, PAGE_SECONDS = 90.0, 120.0

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Whatever a page asks for outside this machine has no address; a proxy would look it up for us.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and writes to 4; Popen only hands numbers on as they are.
_ON_3_AND_4 = (
    "import os, sys; read, write, *command = sys.argv[1:]; "
    "os.dup2(int(read), 3); os.dup2(int(write), 4); os.execv(command[0], command)"
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome on PATH."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a running Chromium.

    Attributes:
      answered: the hosts that answered what pages asked for.
    """

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._buffer, self._last, self._session = b"", 0, {}
        self.answered: set[str] = set()
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime"):
            self._call(f"{domain}.enable")

    def resize(self, width: int, height: int) -> None:
        """Set the window's size in pixels."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url: str, *until: str) -> None:
        """Load a page and wait until its visible text holds every one of `until`.

        Raises:
          TimeoutError: shows what the page held instead.
        """
        self._call("Page.navigate", url="about:blank")  # a change of the fragment alone would load nothing
        self._call("Page.navigate", url=url)
        self.wait_for_text(*until)

    def wait_for_text(self, *expected: str) -> None:
        """Wait until the visible text holds every one of `expected`."""
        self._wait_until(lambda: not self._missing(expected), lambda: f"the text {self._missing(expected)}")

    def _missing(self, expected: Sequence[str]) -> list[str]:
        text = self.text()
        return [words for words in expected if words not in text]

    def wait_for(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true; returns its value."""
        return self._wait_until(lambda: self.evaluate(expression), lambda: expression)

    def text(self) -> str:
        """All visible text."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._session = {}
        self._call("Browser.close")

    def _wait_until(self, condition: Callable[[], Any], sought: Callable[[], str]) -> Any:
        deadline = time.monotonic() + PAGE_SECONDS
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the page never held {sought()}. Its text: {self.text()}")
            time.sleep(0.2)
        return found

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        command = {"id": self._last, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._next_message()).get("id") != self._last:
            self._hear(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return dict(message["result"])

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._events], [], [], ANSWER_SECONDS)
            received = os.read(self._events, 1 << 20) if ready else b""
            if not received:
                raise TimeoutError("Chromium ended or does not answer.")
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _hear(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Network.responseReceived":
            address = urlsplit(event["params"]["response"]["url"])
            self.answered |= {address.hostname or ""} if address.scheme.startswith("http") else set()


@contextmanager
def running_chromium(chromium: str, profile: Path) -> Iterator[Browser]:
    """A Chromium with an empty profile, ended with the block."""
    ours, theirs = zip(*_two_pipes(), strict=True)
    command = [sys.executable, "-c", _ON_3_AND_4, *map(str, theirs), chromium, *_FLAGS, f"--user-data-dir={profile}"]
    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=theirs, stdout=log, stderr=log)
    for descriptor in theirs:
        os.close(descriptor)
    try:
        browser = Browser(*ours)
        yield browser
        browser.close()
        process.wait(30)
    finally:
        for descriptor in ours:
            os.close(descriptor)
        process.kill()
        process.wait()


def _two_pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """(our end, Chromium's end) for commands and for events; high numbers, which 3 and 4 cannot collide with."""
    (read_commands, commands), (events, write_events) = (
        tuple(_high(descriptor) for descriptor in os.pipe()) for _ in range(2)
    )
    return (commands, read_commands), (events, write_events)


def _high(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
