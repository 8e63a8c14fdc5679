"""Segmentations that are killed: `python mortal_segment.py SETTINGS.json KILLS SEED`.

The job runs in forks of this process, which has imported everything, so that a restart takes no time. Each fork is
killed once a seeded number of blocks is on record, and the last one is left alone. Prints, as JSON, how many blocks
each stage had on record at each kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera.settings.segment import SegmentSettings
from tessera.storage.ledger import Ledger, read_rows
from tessera.storage.ledger_states import stages_of
from tessera.workflows.block_jobs import session
from tessera.workflows.outputs import claimed_output, open_finished
from tessera.workflows.segment import plan_job

PATIENCE_S = 600


class Unheard:
    """In place of reports: a kill is to hit the job, and not the bookkeeping of its run."""

    def over_time(self, stage: str = "") -> None:
        return None

    def summary(self, values: Any) -> None:
        return None


def run(settings: SegmentSettings) -> None:
    """Begin the job, or go on with it; rows are recorded soon, or all of a second's would be lost with the process."""
    Ledger.open.__func__.__kwdefaults__["flush_seconds"] = 0.02  # type: ignore[attr-defined]
    job = plan_job(settings, open_finished(Path(settings.volume)))
    with session(settings), claimed_output(job.output, settings) as lease:
        job.run(Unheard(), lease)  # type: ignore[arg-type]


def forked(settings: SegmentSettings) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(settings)
            code = 0
        finally:
            os._exit(code)
    return child


def recorded(outputs: list[Path]) -> dict[str, int]:
    """Blocks on record, by output and stage; what does not exist yet has none."""
    found = {}
    for output in outputs:
        for stage in stages_of(output) if output.with_name(output.name + ".ledger").exists() else []:
            done = {row.block for row in read_rows(output, stage=stage) if row.status == "done"}
            found[f"{output.name} {stage or 'last'}"] = len(done)
    return found


def recorded_soon(outputs: list[Path]) -> dict[str, int]:
    """The same, where a ledger that is being begun can be looked at again."""
    for _ in range(50):
        try:
            return recorded(outputs)
        except (OSError, ValueError):
            time.sleep(0.02)
    return {}


def killed(settings: SegmentSettings, outputs: list[Path], moments: list[int]) -> list[dict[str, int]]:
    """Run a job, kill it once so many blocks are on record in all its stages together, and go on; returns what was."""
    struck = []
    for moment in moments:
        before, child = sum(recorded_soon(outputs).values()), forked(settings)
        until = time.monotonic() + PATIENCE_S
        # It has to get somewhere, or a busy machine would kill it in its first step for ever.
        while sum(recorded_soon(outputs).values()) < max(moment, before + 1) and time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit("the job ended before it could be killed")
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == 0:
            raise SystemExit("the job ended before it could be killed")
        struck.append(recorded_soon(outputs))
    return struck


def finished(settings: SegmentSettings) -> None:
    if os.waitpid(forked(settings), 0)[1]:
        raise SystemExit("a run that nobody killed failed")


def main(told: dict[str, Any], kills: int, seed: int) -> None:
    """An undisturbed run beside the output, then the disturbed one."""
    layout = {name: tuple(told[name]) for name in ("chunk", "shard") if name in told}
    settings = SegmentSettings(**told | layout)
    quiet = replace(settings, output=str(Path(settings.output).with_name("quiet.zarr")))
    finished(quiet)
    blocks = sum(recorded(made_by(quiet)).values())
    moments = np.sort(np.random.default_rng(seed).integers(1, max(2, int(0.9 * blocks)), kills))
    struck = killed(settings, made_by(settings), moments.tolist())
    finished(settings)
    print(json.dumps(struck))


def made_by(settings: SegmentSettings) -> list[Path]:
    """The volumes that a job makes."""
    fragments = [Path(settings.fragments_name)] if settings.method == "watershed" else []
    return [*fragments, Path(settings.output)]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3]))
