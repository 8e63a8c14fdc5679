"""Trials on Ray Tune: which are stopped early, and what is told of each end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tessera.engine.placement import ClusterSize
from tessera.engine.tasks import Task
from tessera.engine.tune import Halving, Tell, TrialPlan, run_trials, trials_at_once


def _trial(item: dict[str, Any], tell: Tell) -> None:
    """Climbs by its slope; the low one waits at the rung until the high one was there."""
    folder = Path(item["folder"])
    if item["kind"] == "wrong":
        raise ValueError("no such volume")
    if item["kind"] == "lost":
        os._exit(9)
    if item["kind"] == "low":
        _wait_for(folder / "high")
    for step in range(1, 7):
        tell({"step": step, "score": item["slope"] * step})
        if step == 3:
            (folder / item["kind"]).touch()
            time.sleep(item["pause_s"])  # a trial that is to be stopped would otherwise end before it is told so
    (folder / f"{item['kind']} ended").touch()


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.1)


def test_a_trial_that_falls_behind_is_stopped_and_each_end_is_told(ray_session: None, tmp_path: Path) -> None:
    """One run of all, because each trial costs a process."""
    kinds = {"high": (1.0, 0), "low": (0.5, 60), "wrong": (1.0, 0), "lost": (1.0, 0)}
    items = [
        {"kind": kind, "slope": slope, "pause_s": pause, "folder": str(tmp_path)}
        for kind, (slope, pause) in kinds.items()
    ]
    plan = TrialPlan(tmp_path / "ray", 4, "score", "max", Halving(grace_steps=2, steps=6, factor=2))
    ends: dict[int, str] = {}
    run_trials(_trial, [Task(i, item) for i, item in enumerate(items)], plan, ends.__setitem__)
    assert ends == {0: "", 1: "", 2: "no such volume", 3: ends[3]}
    assert "its process was lost" in ends[3]
    assert (tmp_path / "high ended").exists() and not (tmp_path / "low ended").exists()


@pytest.mark.parametrize(
    ("asked", "cluster", "count"),
    [
        (0, ClusterSize(2, 0, 2), 1),
        (0, ClusterSize(32, 0, 32), 4),
        (0, ClusterSize(16, 4, 16), 4),
        (2, ClusterSize(4, 0, 4), 2),
    ],
)
def test_trials_at_once_share_a_cluster_without_waiting_for_each_other(
    asked: int, cluster: ClusterSize, count: int
) -> None:
    assert trials_at_once(asked, 1, "auto", cluster) == count


@pytest.mark.parametrize(
    ("asked", "workers", "told"),
    [(3, 1, r"concurrent=3: .*this cluster's 4 CPUs.*Try --concurrent 2\."), (1, 9, "Try --resources.workers 6")],
)
def test_more_than_a_cluster_can_run_is_refused_with_what_it_can(asked: int, workers: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        trials_at_once(asked, workers, "auto", ClusterSize(4, 0, 4))
