"""Training groups on Ray Train: start workers, carry reports to the driver's side, survive a lost worker.

`TensorflowTrainer` is `DataParallelTrainer` with a backend that sets TF_CONFIG, but its constructor imports TensorFlow
in the driver, and its backend config does so in the controller: 16 s each on two cores, in processes that never use it.
So the base class is used with a backend of our own, 20 lines that do the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
import ray.train.collective
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.report_config import CheckpointUploadMode

from tessera.engine.checkpoints import keep_as_heard, mend, without_room, write_checkpoint

Report = Callable[[Mapping[str, Any], Path | None], None]
"""(the group's metrics, the checkpoint's folder or None), called in the controller: one writer for the whole run."""

Merge = Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
"""Every rank's metrics -> the group's, called in the controller."""


class FinalError(RuntimeError):
    """What a loop raises, on every worker, where a restart could only repeat the failure: the group stops at once."""


@dataclass(frozen=True)
class TrainGroup:
    """What a training run occupies and where it keeps its checkpoints.

    Attributes:
      name: of the run; the same name and storage resume an interrupted run.
      storage: absolute folder that every node sees.
      workers: data-parallel workers; (least, most) lets Ray Train start as many as fit, and start the group anew from
        the last checkpoint when more fit or some are lost.
      cpus_per_worker: reserved per worker; fractions leave room for Ray Data beside them.
      use_gpu: one GPU per worker.
      max_failures: restarts of the group after a lost worker.
      resize_every_s: seconds between two looks at whether more workers fit.
    """

    name: str
    storage: Path
    workers: int | tuple[int, int]
    cpus_per_worker: float
    use_gpu: bool = False
    max_failures: int = 3
    resize_every_s: float = 60.0


def of_rank_0(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Merge by leaving out what other ranks say."""
    return metrics[0]


def run_group(
    loop: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    group: TrainGroup,
    on_report: Report,
    merge: Merge = of_rank_0,
) -> Path:
    """Run `loop(config)` on every worker of a group and return the last checkpoint's folder.

    A run of this name that was cut goes on from the last checkpoint whose report `on_report` heard.

    Raises:
      RuntimeError: the group failed more often than it may, the worker's own error being the cause; or its loop
        raised `FinalError`; or there was no room for a checkpoint.
    """
    folder = group.storage / group.name
    mend(folder)
    # The controller takes one report per look, and looks every 2 s unless told otherwise: quick steps would wait.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    resources = {"CPU": group.cpus_per_worker} | ({"GPU": 1} if group.use_gpu else {})
    trainer = DataParallelTrainer(
        partial(_until_final, loop),
        train_loop_config=config,
        backend_config=_TfConfig(),
        scaling_config=ScalingConfig(
            num_workers=group.workers,
            use_gpu=group.use_gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=group.resize_every_s,
        ),
        run_config=RunConfig(
            name=group.name,
            storage_path=str(group.storage),
            failure_config=FailureConfig(max_failures=group.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_Reporter(on_report, merge, folder)],
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"training {group.name} failed: {_root_cause(error, folder)}") from error
    except ray.exceptions.RayActorError as error:
        raise RuntimeError(
            f"training {group.name} lost its controller: {str(error).splitlines()[0]} The last checkpoint is kept, and "
            "the same command goes on from it."
        ) from error
    if result.return_value is not None:
        raise RuntimeError(f"training {group.name} failed: {result.return_value}")
    if result.checkpoint is None:
        raise RuntimeError(f"training {group.name} ended without a checkpoint: its loop never reported one.")
    return Path(result.checkpoint.path)


def _root_cause(error: BaseException, folder: Path) -> str:
    if (told := without_room(error, folder)) is not None:
        return told
    failures = getattr(error, "worker_failures", None) or {}
    causes = {f"worker {rank}: {failure}" for rank, failure in failures.items()}
    return "; ".join(sorted(causes)) or str(error)


# Inside a worker.


def _until_final(loop: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> str | None:
    """Run a loop; a final failure is returned rather than raised, because Ray Train retries whatever is raised."""
    try:
        loop(config)
    except FinalError as error:
        return str(error)
    return None


def rank_and_world() -> tuple[int, int]:
    """This worker's rank and the number of workers."""
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


@contextmanager
def last_checkpoint() -> Iterator[Path | None]:
    """The folder of the checkpoint to resume from, None at a fresh start."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def report(metrics: Mapping[str, Any], save: Callable[[Path], None] | None = None) -> None:
    """Report metrics, and a checkpoint that `save` writes; a barrier over all workers.

    Args:
      metrics: `run_group` says what becomes of the other ranks'.
      save: fills the checkpoint's folder. Every worker gives one at the same steps, and only rank 0's is called.

    Raises:
      FinalError: on every worker, where there is no room for the checkpoint.
    """
    if save is None:
        ray.train.report(dict(metrics))
        return
    context = ray.train.get_context()
    storage = context.get_storage()
    kept = Path(storage.experiment_fs_path) / storage.make_default_checkpoint_dir_name()
    writes = context.get_world_rank() == 0
    # All stop, or none: a worker that goes on alone waits for the others' gradients for ever.
    problem = ray.train.collective.broadcast_from_rank_zero(_write(kept, save) if writes else None)
    if problem:
        raise FinalError(problem)
    checkpoint = Checkpoint(str(kept), storage.storage_filesystem) if writes else None
    ray.train.report(dict(metrics), checkpoint=checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def _write(folder: Path, save: Callable[[Path], None]) -> str | None:
    """Write a checkpoint; what to say where there is no room for it."""
    try:
        write_checkpoint(folder, save)
    except Exception as error:
        if (problem := without_room(error, folder.parent)) is None:
            raise
        return problem
    return None


class _Reporter(UserCallback):
    """Hands a group's reports to a plain function, in the controller, and then keeps in mind that they were heard."""

    def __init__(self, on_report: Report, merge: Merge, run: Path) -> None:
        self.on_report, self.merge, self.run = on_report, merge, run

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        self.on_report(self.merge(metrics), Path(checkpoint.path) if checkpoint else None)
        if checkpoint is not None:
            keep_as_heard(self.run)


@dataclass
class _TfConfig(BackendConfig):
    """Tells TensorFlow's workers of each other, without importing TensorFlow where none of them runs."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _TfBackend

    def to_dict(self) -> dict[str, Any]:
        return {}


class _TfBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        addresses = worker_group.execute(_own_address)
        pending = [
            worker_group.execute_single_async(rank, _set_tf_config, addresses, rank)
            for rank in range(len(worker_group))
        ]
        ray.get(pending)


def _own_address() -> str:
    from ray.train._internal.utils import get_address_and_port

    host, port = get_address_and_port()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})
