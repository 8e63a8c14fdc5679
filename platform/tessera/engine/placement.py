"""How many workers, with how much of the cluster each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tessera.engine.blocks import WorkerPool


@dataclass(frozen=True, slots=True)
class ClusterSize:
    """What a cluster has: logical CPUs and GPUs in all, and the CPUs of its largest node, which no worker can pass."""

    cpus: float
    gpus: float
    node_cpus: float


def block_pool(workers: int, cluster: ClusterSize) -> WorkerPool:
    """A pool for block work; 0 workers means: choose.

    One worker per GPU where there are GPUs; else one per 8 cores, because one network on 8 cores shares its weights
    and wastes no import, while a second one would only compete with it.

    >>> block_pool(0, ClusterSize(16, 0, node_cpus=8)), block_pool(0, ClusterSize(2, 0, 2)).cpus
    (WorkerPool(workers=2, cpus=8.0, gpus=0.0, in_flight=2), 2.0)

    Raises:
      ValueError: more workers than the cluster can ever run.
    """
    cpus, gpus = cluster.cpus, cluster.gpus
    if workers > max(cpus, gpus):
        raise ValueError(
            f"workers={workers} is more than this cluster's {cpus:g} CPUs can ever run at once. "
            f"Try workers={int(cpus)}."
        )
    count = workers or int(gpus) or max(1, int(cpus) // 8)
    share = max(1, int(min(cpus // count, cluster.node_cpus)))
    return WorkerPool(count, cpus=float(share), gpus=1.0 if 0 < count <= gpus else 0.0)


_LEAST_CPUS = 0.5


@dataclass(frozen=True, slots=True)
class TrainShare:
    """What each training worker reserves."""

    cpus: float
    gpu: bool


def train_share(workers: int, use_gpu: Literal["auto", "yes", "no"], cluster: ClusterSize) -> TrainShare:
    """A training worker's share of a cluster, with CPUs left for Ray Data, which feeds it.

    >>> train_share(1, "auto", ClusterSize(2, 0, 2)).cpus, train_share(2, "auto", ClusterSize(2, 0, 2)).cpus
    (1.0, 0.5)

    Raises:
      ValueError: GPUs were asked for and are not there, or the workers can never run together.
    """
    cpus, gpus = cluster.cpus, cluster.gpus
    if use_gpu == "yes" and gpus < workers:
        raise ValueError(
            f"use_gpu=yes with {workers} workers, but this cluster has {gpus:g} GPUs. "
            "Try --resources.use_gpu auto, or fewer workers."
        )
    for_data = max(1.0, cpus // 4)
    if workers * _LEAST_CPUS > cpus - 1.0:
        most = int((cpus - 1.0) / _LEAST_CPUS)
        raise ValueError(
            f"workers={workers} is more than this cluster's {cpus:g} CPUs can ever give: each needs {_LEAST_CPUS}, and "
            f"Ray Data one beside them. Try --resources.workers {max(1, most)}."
        )
    share = max(_LEAST_CPUS, min(8.0, cluster.node_cpus, (cpus - for_data) / workers))
    return TrainShare(share, gpu=use_gpu != "no" and gpus >= workers and gpus > 0)
