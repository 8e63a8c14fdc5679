"""One trial of a search: a training that reports its validations, and a record of how it ended.

search's driver   decides which trials are left, and hears how each ended
trial's process   this module: the driver's side of a training group, as in `train`, without the registry
group's workers   training_loop.py

A trial is done when its record is written; then its checkpoints go, for a search leaves scores and settings.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tessera.settings.train import TrainSettings
from tessera.workflows.train import PROGRESS, fitted
from tessera.workflows.training_plan import RUN, RunPlace, prepared

if TYPE_CHECKING:
    from tessera.engine.placement import ClusterSize

RECORD = "trial.json"
State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """What a trial's process is given.

    Attributes:
      settings: of the training, with absolute paths and tracking URI.
      folder: absolute; its last part is the trial's name.
      home: TESSERA_HOME, which another node's processes were not told.
      tags: of its MLflow run.
      cluster: the part of the cluster that it may take.
      metric: the score that is compared.
    """

    settings: TrainSettings
    folder: Path
    home: Path
    tags: Mapping[str, str]
    cluster: ClusterSize
    metric: str


@dataclass(frozen=True)
class Record:
    """How a trial ended.

    Attributes:
      state: finished; stopped early by the scheduler; or failed.
      score: at the last validation; None where there was none.
      step: optimiser steps at that validation.
      run_id: MLflow's; None where no run was begun.
      error: why it failed.
    """

    state: State
    score: float | None = None
    step: int = 0
    run_id: str | None = None
    error: str = ""


def run_trial(trial: Trial, tell: Callable[[Mapping[str, float]], None]) -> None:
    """Train, report each validation and keep the record; what an earlier try reported is reported again first.

    Raises:
      ValueError, OSError, RuntimeError: the training failed; nothing is recorded.
    """
    os.environ["TESSERA_HOME"] = str(trial.home)
    for line in validations(trial.folder, trial.metric):
        tell(line)
    if read_record(trial.folder) is not None:
        return
    last = trial.settings.schedule.steps

    def hear(line: Mapping[str, Any]) -> None:
        # The last one is told once the record is written: the scheduler may end this process at any that it hears.
        if trial.metric in line and line["step"] < last:
            tell(line)

    with fitted(prepared(trial.settings), RunPlace(trial.folder, trial.tags, trial.cluster, hear)):
        pass
    write_record(trial.folder, ended(trial.folder, "finished", trial.metric))
    tell(validations(trial.folder, trial.metric)[-1])


def ended(folder: Path, state: State, metric: str, error: str = "") -> Record:
    """The record of a trial by what its folder holds."""
    run_id = json.loads((folder / RUN).read_text())["run_id"] if (folder / RUN).exists() else None
    lines = validations(folder, metric)
    if not lines:
        return Record(state, run_id=run_id, error=error)
    return Record(state, float(lines[-1][metric]), int(lines[-1]["step"]), run_id, error)


def validations(folder: Path, metric: str) -> list[dict[str, Any]]:
    """The progress of a trial as far as it was validated; a line that a kill cut short is left out."""
    path = folder / PROGRESS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    told = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in told if metric in line]


def read_record(folder: Path) -> Record | None:
    """A trial's record; None where it has not ended."""
    path = folder / RECORD
    return Record(**json.loads(path.read_text())) if path.exists() else None


def write_record(folder: Path, record: Record) -> None:
    """Keep a record, whole or not at all, and let the trial's checkpoints go."""
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f"{RECORD}.part"
    half.write_text(json.dumps(asdict(record), indent=2))
    half.replace(folder / RECORD)
    if record.state != "failed":  # that may go on from them, once its cause is mended
        for checkpoint in folder.glob("checkpoint_*/"):
            shutil.rmtree(checkpoint, ignore_errors=True)
