"""What a block job tells its MLflow run while it runs: rates, retries and failures, over the number of blocks done.

    meter --every 10 s--> outbox on disk --> MLflow, whenever it answers

A server that is away stops no job: what it has not taken is kept under TESSERA_HOME, and the same command hands it in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tessera.settings.places import home
from tessera.storage.locations import Place
from tessera.tracking.outbox import Outbox, UntakenError
from tessera.tracking.runs import Tracker
from tessera.workflows.live import Tell
from tessera.workflows.meter import Reading

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobReports:
    """A job's way to its run's metrics; open it with `reporting`."""

    outbox: Outbox

    def over_time(self, stage: str = "progress") -> Tell:
        """Tells a meter's readings as metrics `STAGE/NAME`, whose step is the number of blocks done."""

        def tell(reading: Reading) -> None:
            values = {f"{stage}/{name}": value for name, value in reading.metrics.items()}
            self.outbox.metrics(values, reading.done)

        return tell

    def summary(self, values: Mapping[str, float]) -> None:
        """Tell what the whole job came to."""
        self.outbox.metrics(values, step=0)


@contextmanager
def reporting(run: Tracker, output: Place) -> Iterator[JobReports]:
    """A job's reports, handed in while the block runs and at its end.

    Args:
      run: the job's.
      output: what it makes.

    Raises:
      RuntimeError: the work is done, but MLflow has not taken all of it.
    """
    outbox = Outbox(run, home() / "outbox" / run.run_id)
    try:
        with outbox.handing_in():
            yield JobReports(outbox)
    except BaseException:
        _try_to_hand_in(outbox)  # the work's own error is the one to be told
        raise
    try:
        outbox.hand_in()
    except UntakenError as error:
        raise RuntimeError(
            f"{output} is done, but MLflow has not all of it: {error}. When the server answers, run the same command "
            "again: it hands them in and computes nothing."
        ) from error


def _try_to_hand_in(outbox: Outbox) -> None:
    try:
        outbox.hand_in()
    except UntakenError as error:
        _log.warning("%s", error)
