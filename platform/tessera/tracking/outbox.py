"""What a run has to say, kept on disk until its MLflow server has taken it.

Work outlives its server: whoever hears the reports only writes files, and the driver hands them in, in order, as soon
as the server takes them. Handing in twice changes nothing in MLflow's tables, because each value keeps the time
at which it was first told.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.storage.files import write_atomically
from tessera.tracking.runs import LAST_PICTURE, Tracker

_log = logging.getLogger(__name__)

LOOK_S, LONGEST_PAUSE_S = 0.5, 30.0


class UntakenError(ConnectionError):
    """The server does not take what the outbox holds; it is kept there."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """A run's entries that MLflow has not taken yet: a plain value that travels to the process that writes them.

    One process writes at a time, and one hands in.

    Attributes:
      tracker: of the run.
      folder: absolute; one file per entry, in the order of their names.
    """

    tracker: Tracker
    folder: Path

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep metrics of one step."""
        self._keep("metrics", {"values": dict(values), "step": step, "at_ms": time.time_ns() // 1_000_000})

    def picture(self, key: str, image: NDArray[Any], step: int, words: str = LAST_PICTURE) -> None:
        """Keep an RGB picture, uint8 (y, x, 3); see `Tracker.picture`."""
        self._keep("picture", {"key": key, "step": step, "words": words}, image=image)

    def waiting(self) -> list[Path]:
        """The entries that are kept, oldest first."""
        return sorted(self.folder.glob("*.npz")) if self.folder.exists() else []

    def hand_in(self) -> None:
        """Hand in all that is kept.

        Raises:
          UntakenError: the server does not answer or refuses; names the server and the folder.
        """
        for path in self.waiting():
            try:
                self._send(path)
            except Exception as error:  # MLflow's, its client's and the network's types have no common base
                raise UntakenError(
                    f"MLflow at {self.tracker.uri} does not take what run {self.tracker.run_id} reports ({error}): "
                    f"{len(self.waiting())} reports are kept in {self.folder}"
                ) from error
            path.unlink()

    @contextmanager
    def handing_in(self) -> Iterator[None]:
        """Hand in from a thread while the block runs; a server that is away is asked again, ever more rarely."""
        stop = threading.Event()
        thread = threading.Thread(target=self._keep_handing_in, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _keep_handing_in(self, stop: threading.Event) -> None:
        away = 0
        while not stop.wait(LOOK_S if not away else min(LONGEST_PAUSE_S, 2.0**away)):
            try:
                self.hand_in()
            except UntakenError as error:
                if not away:
                    _log.warning("%s and handed in when it does; the work goes on", error)
                away += 1
                continue
            if away:
                _log.info("MLflow at %s answers again, and has all reports", self.tracker.uri)
            away = 0

    def _keep(self, call: str, words: Mapping[str, Any], **arrays: NDArray[Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = BytesIO()
        np.savez(buffer, call=np.array(json.dumps([call, words])), **arrays)  # type: ignore[arg-type]
        write_atomically(self.folder / f"{time.time_ns():020d}.npz", buffer.getvalue())

    def _send(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as kept:
            call, words = json.loads(str(kept["call"]))
            arrays = {name: kept[name] for name in kept.files if name != "call"}
        getattr(self.tracker, call)(**words, **arrays)
