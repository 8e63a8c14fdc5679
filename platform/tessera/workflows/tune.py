"""A search for training settings: trials drawn beforehand, run on Ray Tune, compared on held-out sections.

search.json        what was asked, and the data's fingerprints, before anything starts
NAME-003/          a trial: what `train` keeps in a run's folder, and trial.json once it has ended
best.yaml          the best trial's settings, for `tessera train --config`

Every trial is fixed by the search's settings and its own number. So a search that was killed needs no state of Ray
Tune's to go on: trials with a record are done, and the others are begun, or go on from their last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tessera import __version__
from tessera.settings.common import TrainingTrackingSettings
from tessera.settings.keys import changed
from tessera.settings.places import home
from tessera.settings.train import TrainSettings
from tessera.settings.tune import TuneSettings
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri
from tessera.tracking.trials import PARENT, TrialRow, close_run, tell_trials
from tessera.workflows.plain import plain
from tessera.workflows.training_plan import Prepared, check_same_data, prepared
from tessera.workflows.trials import RECORD, Record, Trial, ended, read_record, run_trial, write_record

_log = logging.getLogger(__name__)

SEARCH, BEST = "search.json", "best.yaml"
# May differ when a search goes on: further trials follow those that were drawn.
_MAY_DIFFER: dict[str, Any] = {"name": None, "trials": None, "concurrent": None}


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
      name: of the search.
      run_id: MLflow's, of the run that holds the trials' runs.
      best: file of the best trial's settings.
      points: the searched settings of each trial.
      records: how each trial ended.
      winner: number of the best trial.
    """

    name: str
    run_id: str
    best: Path
    points: list[dict[str, Any]]
    records: list[Record]
    winner: int


def tune(settings: TuneSettings) -> TuneResult:
    """Run the workflow.

    Raises:
      ValueError, OSError: something does not fit, before trials start.
      RuntimeError: no trial finished.
    """
    folder = home() / "searches" / (settings.name or default_name(settings))
    base = prepared(settings.train)
    resume = _earlier_search(folder, settings, base)
    uri = tracking_uri(settings.train.tracking.uri, home())
    tags = {"tessera.workflow": "tune", "tessera.folder": str(folder), "tessera.version": __version__}
    experiment = settings.train.tracking.experiment
    with tracked_run(uri, experiment, folder.name, plain(settings), tags, home(), resume=resume) as run:
        folder.mkdir(parents=True, exist_ok=True)
        begun = {"run_id": run.run_id, "settings": plain(settings), "fingerprints": base.prints}
        (folder / SEARCH).write_text(json.dumps(begun, indent=2))
        _run_left(settings, anywhere(base, uri), run, folder)
        return _concluded(settings, run, folder)


def anywhere(base: Prepared, uri: str) -> TrainSettings:
    """Settings that mean the same in every trial's process, now and after a restart.

    A bundle's folder becomes absolute, an alias of a registered model the version that it stands for.
    """
    settings, parent = base.settings, base.parent
    start = None if parent is None else parent.name if parent.name.startswith("models:/") else str(parent.bundle)
    return replace(settings, start_from=start, tracking=replace(settings.tracking, uri=uri))


def default_name(settings: TuneSettings) -> str:
    """A name that the same search has again: settings decide it, but for how many trials run, and how many at once."""
    asked = json.dumps({**plain(settings), **_MAY_DIFFER}, sort_keys=True)
    return f"tune-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


def trial_folder(folder: Path, index: int) -> Path:
    """Where a trial lies.

    >>> trial_folder(Path("rates"), 3)
    PosixPath('rates/rates-003')
    """
    return folder / f"{folder.name}-{index:03d}"


def _earlier_search(folder: Path, settings: TuneSettings, base: Prepared) -> str | None:
    """The MLflow run of an earlier search of this name and settings.

    Raises:
      FileExistsError: it had other settings.
      ValueError: it learned from other voxels.
    """
    if not (folder / SEARCH).exists():
        return None
    earlier = json.loads((folder / SEARCH).read_text())
    if {**earlier["settings"], **_MAY_DIFFER} != {**plain(settings), **_MAY_DIFFER}:
        raise FileExistsError(
            f"search {folder.name} was begun with other settings ({folder / SEARCH}): its trials would not compare "
            "with these. Give another --name, or the same settings."
        )
    check_same_data(folder, earlier, base.prints)
    _log.info("going on with the search %s", folder.name)
    return str(earlier["run_id"])


def _run_left(settings: TuneSettings, base: TrainSettings, run: Tracker, folder: Path) -> None:
    """Run the trials that have no record yet, and those that failed."""
    trainings = {i: made for i, point in enumerate(settings.points) if (made := _made(base, point, run, folder, i))}
    left = [index for index in trainings if _is_left(trial_folder(folder, index))]
    if not left:
        return
    for index in left:
        (trial_folder(folder, index) / RECORD).unlink(missing_ok=True)  # of a failure
    # The scheduler compares with what ended before: those trials report again, and end at once.
    told = [index for index in trainings if index not in left] if settings.early_stopping.name != "none" else []
    _log.info("search %s: %d of %d trials are left", folder.name, len(left), len(settings.points))
    _run_on_ray(settings, {index: trainings[index] for index in [*told, *left]}, run, folder)


def _is_left(place: Path) -> bool:
    record = read_record(place)
    return record is None or record.state == "failed"


def _made(base: TrainSettings, point: dict[str, Any], run: Tracker, folder: Path, index: int) -> TrainSettings | None:
    """A trial's settings; None where the drawn values cannot be trained, which is then its record."""
    place = trial_folder(folder, index)
    try:
        return changed(replace(base, name=place.name), point)
    except ValueError as error:
        refused = error
    if read_record(place) is not None:  # of an earlier try, with the same values
        return None
    tags = {**_tags(run, folder, index), "tessera.workflow": "train"}
    with suppress(ValueError), tracked_run(run.uri, base.tracking.experiment, place.name, point, tags, home()) as child:
        raise refused
    write_record(place, Record("failed", run_id=child.run_id, error=str(refused)))
    _log.warning("trial %s failed: %s", place.name, refused)
    return None


def _tags(run: Tracker, folder: Path, index: int) -> dict[str, str]:
    return {PARENT: run.run_id, "tessera.search": folder.name, "tessera.trial": str(index)}


def _run_on_ray(settings: TuneSettings, trainings: dict[int, TrainSettings], run: Tracker, folder: Path) -> None:
    from tessera.engine.session import cluster_size, connected
    from tessera.engine.tasks import numbered
    from tessera.engine.tune import Halving, TrialPlan, portion, run_trials, trials_at_once

    wanted, stopping = settings.train.resources, settings.early_stopping
    longest = max(training.schedule.steps for training in trainings.values())
    halving = None if stopping.name == "none" else Halving(stopping.grace_steps, longest, stopping.factor)
    with connected():
        cluster = cluster_size()
        at_once = trials_at_once(settings.concurrent, wanted.worker_range[0], wanted.use_gpu, cluster)
        share = portion(cluster, at_once)
        trials = {
            index: Trial(one, trial_folder(folder, index), home(), _tags(run, folder, index), share, settings.metric)
            for index, one in trainings.items()
        }
        plan = TrialPlan(folder / "ray", at_once, settings.metric, settings.mode, halving)
        run_trials(run_trial, numbered(trials.items()), plan, partial(_hear_end, settings, run, folder))


def _hear_end(settings: TuneSettings, run: Tracker, folder: Path, index: int, error: str) -> None:
    """Record a trial that could not do so itself, because it failed or was stopped; called in the driver."""
    place = trial_folder(folder, index)
    if read_record(place) is None:
        record = ended(place, "failed" if error else "stopped", settings.metric, error)
        if record.run_id is not None:
            why = {"tessera.error": error[:500]} if error else {"tessera.stopped": f"{settings.early_stopping.name}"}
            close_run(run.uri, record.run_id, "FAILED" if error else "FINISHED", why)
        write_record(place, record)
    _tell_end(settings, place, read_record(place) or Record("failed"), settings.points[index])


def _tell_end(settings: TuneSettings, place: Path, record: Record, point: dict[str, Any]) -> None:
    values = ", ".join(f"{key}={value}" for key, value in point.items())
    score = "" if record.score is None else f", {settings.metric} {record.score:.4f} after {record.step} steps"
    _log.info("trial %s (%s) %s%s", place.name, values, f"{record.state} {record.error}".strip(), score)


def _concluded(settings: TuneSettings, run: Tracker, folder: Path) -> TuneResult:
    """Compare the trials and keep the best one's settings.

    Raises:
      RuntimeError: none finished; lists why.
    """
    points = settings.points
    records = [read_record(trial_folder(folder, index)) or Record("failed") for index in range(len(points))]
    finished = [i for i, one in enumerate(records) if one.state == "finished" and one.score == one.score]
    if not finished:
        told = "; ".join(dict.fromkeys(record.error for record in records if record.error))
        raise RuntimeError(f"search {folder.name}: none of {len(points)} trials finished: {told}")
    sign = 1 if settings.mode == "max" else -1
    winner = max(finished, key=lambda index: sign * (records[index].score or 0.0))
    rest = sorted(
        (i for i in range(len(points)) if i != winner),
        key=lambda i: (records[i].state != "finished", -sign * (records[i].score or 0.0)),
    )
    rows = _rows(folder, points, records)
    tell_trials(run, [rows[i] for i in (winner, *rest)], settings.metric)
    best = folder / BEST
    best.write_text(best_settings(settings, folder.name, points[winner], records, winner))
    return TuneResult(folder.name, run.run_id, best, points, records, winner)


def _rows(folder: Path, points: Sequence[dict[str, Any]], records: Sequence[Record]) -> list[TrialRow]:
    return [
        TrialRow(trial_folder(folder, i).name, one.state, point, one.score, one.run_id)
        for i, (point, one) in enumerate(zip(points, records, strict=True))
    ]


def best_settings(
    settings: TuneSettings, name: str, point: dict[str, Any], records: Sequence[Record], winner: int
) -> str:
    """The best trial's settings as a file for `tessera train`, which says where they come from."""
    record = records[winner]
    values = plain(changed(settings.train, point))
    left_out = {"name", "refit"} | ({"tracking"} if settings.train.tracking == TrainingTrackingSettings() else set())
    searched = ", ".join(f"{key}={value}" for key, value in point.items())
    comment = f"""\
# The best of {len(records)} trials of the search {name}: {searched}.
#
# Source: `tessera tune` of tessera {__version__}, trial {winner}, MLflow run {record.run_id}.
# Cost: {record.step} optimiser steps; the trial's run tells how long they took.
# Score: {settings.metric} {record.score:.4f} on the held-out sections that chose it: expect less on others.
"""
    return comment + str(yaml.safe_dump({k: v for k, v in values.items() if k not in left_out}, sort_keys=False))
