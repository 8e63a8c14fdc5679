"""Trials on Ray Tune: which of them run when, on what share of the cluster, and which are stopped early.

A trial is a call of a plain function in a process of its own, which may start a training group (`engine.train`): so
Ray's guide to hyperparameter search composes Tune with Train's second version. The process reserves no CPU, because it
only waits: the group reserves its workers' share by itself, and the number of trials at once, not Tune's count of
resources, keeps groups from waiting for each other's CPUs.

Tune's own snapshots are not used to go on after a kill: they are minutes old when it comes, and hold the pickled
functions of another version. The caller decides which trials are left, and a trial may report again what it
reported before, so that the scheduler knows of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tessera.engine.placement import ClusterSize, train_share
from tessera.engine.tasks import Task

Tell = Callable[[Mapping[str, float]], None]
"""Tells the scheduler of a trial: metrics, among them `step` and the one that is searched for."""
RunTrial = Callable[[Any, Tell], None]
"""One trial, in a process of its own; a module-level function."""
OnEnd = Callable[[int, str], None]
"""(the trial's index, its error or ""), called in the driver: the trial returned, was stopped early, or failed."""

_STEP, _ERROR = "step", "error"
# A resource of the node that holds the head, of which each trial takes a crumb: Tune wants a reservation, and the trial
# must not take a CPU from the group that it waits for.
_CRUMB = {"node:__internal_head__": 0.001}


@dataclass(frozen=True, slots=True)
class Halving:
    """Asynchronous successive halving (Li et al. 2020): at each rung only the best part of the trials goes on.

    Attributes:
      grace_steps: the first rung; no trial is stopped before.
      steps: of a whole trial.
      factor: one in so many goes on; also the ratio of a rung to the one before.
    """

    grace_steps: int
    steps: int
    factor: float = 3.0


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """How trials are run.

    Attributes:
      storage: absolute folder for Tune's own files.
      concurrent: trials at once.
      metric: name of the metric that is searched for.
      mode: whether more of it is better.
      halving: stops the worst trials early; None runs each to its end.
    """

    storage: Path
    concurrent: int
    metric: str
    mode: Literal["max", "min"]
    halving: Halving | None = None


def run_trials(run: RunTrial, tasks: Sequence[Task], plan: TrialPlan, on_end: OnEnd) -> None:
    """Run `run(item, tell)` for every task; a failed trial is told to `on_end` and the others go on.

    Raises:
      KeyboardInterrupt: the user stopped the search; trials under way were not told to `on_end`.
    """
    if not tasks:
        return
    items = {task.index: task.item for task in tasks}
    trainable = ray.tune.with_resources(partial(_trial, run=run, items=ray.put(items)), _CRUMB)
    config = ray.tune.TuneConfig(scheduler=_scheduler(plan), max_concurrent_trials=plan.concurrent)
    files = ray.tune.RunConfig(
        name="tune", storage_path=str(plan.storage), callbacks=[_Ends(on_end)], verbose=0, log_to_file=False
    )
    space = {"index": ray.tune.grid_search(list(items))}
    with _quietly():
        ray.tune.Tuner(trainable, param_space=space, tune_config=config, run_config=files).fit()


def portion(cluster: ClusterSize, concurrent: int) -> ClusterSize:
    """What each of several trials at once may take of a cluster.

    >>> portion(ClusterSize(32, 4, node_cpus=16), 4)
    ClusterSize(cpus=8.0, gpus=1, node_cpus=8.0, listed=())
    """
    cpus = cluster.cpus / concurrent
    return ClusterSize(cpus, cluster.gpus // concurrent, min(cluster.node_cpus, cpus))


def trials_at_once(concurrent: int, workers: int, use_gpu: Literal["auto", "yes", "no"], cluster: ClusterSize) -> int:
    """How many training groups run at once; 0 means: choose.

    One per GPU of each worker where there are GPUs; else one per 8 cores of each worker, as prediction chooses: two
    trainings that share few cores take longer than one after the other, for each imports TensorFlow and runs Ray Data.

    >>> trials_at_once(0, 1, "auto", ClusterSize(2, 0, 2)), trials_at_once(0, 2, "auto", ClusterSize(64, 8, 64))
    (1, 4)

    Raises:
      ValueError: so many groups can never run at once, or not even one.
    """
    gpus = 0 if use_gpu == "no" else int(cluster.gpus)
    chosen = concurrent or gpus // workers or max(1, int(cluster.cpus) // (8 * workers))
    fitting = (n for n in range(chosen, 0, -1) if _fits(workers, use_gpu, portion(cluster, n)))
    most = next(fitting, 0)
    if 0 < most < chosen:
        raise ValueError(
            f"concurrent={concurrent}: so many trainings, each of {workers} workers with Ray Data beside them, are "
            f"more than this cluster's {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs can run: they would wait for "
            f"each other's share for ever. Try --concurrent {most}."
        )
    train_share((workers, workers), use_gpu, portion(cluster, chosen))
    return chosen


def _fits(workers: int, use_gpu: Literal["auto", "yes", "no"], cluster: ClusterSize) -> bool:
    try:
        train_share((workers, workers), use_gpu, cluster)
    except ValueError:
        return False
    return True


def _scheduler(plan: TrialPlan) -> TrialScheduler:
    if plan.halving is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=_STEP,
        metric=plan.metric,
        mode=plan.mode,
        grace_period=plan.halving.grace_steps,
        max_t=plan.halving.steps,
        reduction_factor=plan.halving.factor,
        # A trial that reports its last step ends by itself.
        stop_last_trials=False,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Tune without its tables and files of results, and interrupted as any Python program is."""
    own = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # an error is a report without the metric
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output writes its tables to standard output even at verbose=0
    }
    before = {name: os.environ.get(name) for name in own}
    log = logging.getLogger("ray.tune")
    level = log.level
    os.environ.update(own)
    log.setLevel(logging.CRITICAL)  # it would complain of its missing files
    try:
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _Ends(ray.tune.Callback):
    """Tells a plain function of each trial's end, in the driver."""

    def __init__(self, on_end: OnEnd) -> None:
        self.on_end = on_end

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_end(int(trial.config["index"]), str(trial.last_result.get(_ERROR, "")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_end(int(trial.config["index"]), "its process was lost; Ray's log folder says how")


# In the trial's process.


def _trial(config: dict[str, Any], run: RunTrial, items: ray.ObjectRef) -> None:
    """Run a trial; its error travels as a report, because Tune would print it and hide it from `_Ends`."""
    try:
        run(ray.get(items)[config["index"]], _tell)
    except Exception as error:
        ray.tune.report({_ERROR: str(error) or type(error).__name__})


def _tell(metrics: Mapping[str, float]) -> None:
    ray.tune.report(dict(metrics))
