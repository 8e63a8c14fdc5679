"""How many workers, with how much of the cluster each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tessera.engine.actors import WorkerPool


@dataclass(frozen=True, slots=True)
class NodeSize:
    """What Ray lends on one node: logical CPUs, GPUs, and bytes of memory, 0 where that is not known."""

    cpus: float
    gpus: float = 0.0
    memory: int = 0


@dataclass(frozen=True, slots=True)
class ClusterSize:
    """What a cluster has: logical CPUs and GPUs in all, and the CPUs of its largest node, which no worker can pass.

    Attributes:
      cpus: of all nodes.
      gpus: of all nodes.
      node_cpus: of the largest node.
      listed: every node; none where they are taken to be like the largest.
    """

    cpus: float
    gpus: float
    node_cpus: float
    listed: tuple[NodeSize, ...] = ()

    @property
    def nodes(self) -> tuple[NodeSize, ...]:
        """Its nodes."""
        count = max(1, round(self.cpus / self.node_cpus))
        return self.listed or (NodeSize(self.node_cpus, self.gpus / count),) * count


_CPUS_PER_NETWORK = 8


def block_pool(workers: int, cluster: ClusterSize) -> WorkerPool:
    """A pool for block work; 0 workers means: choose.

    One worker per GPU where there are GPUs; else one per 8 cores, and one at least on each node, because one network on
    8 cores shares its weights and wastes no import, while a second one would only compete with it. Each reserves as
    many cores as leave room for all, and its libraries use as many threads.

    >>> block_pool(0, ClusterSize(16, 0, node_cpus=8)), block_pool(0, ClusterSize(2, 0, 2)).cpus
    (WorkerPool(workers=2, cpus=8.0, gpus=0.0, in_flight=2), 2.0)
    >>> block_pool(0, ClusterSize(8, 0, node_cpus=2)).workers
    4
    >>> block_pool(0, ClusterSize(4, 0, 2, (NodeSize(0), NodeSize(2), NodeSize(2)))).workers
    2

    Raises:
      ValueError: more workers than the cluster can ever run.
    """
    cpus, gpus = cluster.cpus, cluster.gpus
    if workers > max(cpus, gpus):
        raise ValueError(
            f"workers={workers} is more than this cluster's {cpus:g} CPUs can ever run at once. "
            f"Try workers={int(cpus)}."
        )
    # A head without CPUs, as clusters that must not lose it have, runs no worker.
    working = [node for node in cluster.nodes if node.cpus >= 1] or cluster.nodes
    count = workers or int(gpus) or sum(max(1, int(node.cpus) // _CPUS_PER_NETWORK) for node in working)
    if 0 < count <= gpus:
        return WorkerPool(count, cpus=_cpus_beside(cluster), gpus=1.0)
    shares = range(int(cluster.node_cpus), 0, -1)
    return WorkerPool(count, cpus=float(next((cpus for cpus in shares if _room(cluster, cpus) >= count), 1)))


def _room(cluster: ClusterSize, cpus: float) -> int:
    """How many workers of so many CPUs run at once."""
    return sum(int(node.cpus // cpus) for node in cluster.nodes)


def _cpus_beside(cluster: ClusterSize) -> float:
    """CPUs for each GPU, on the node that has fewest for its own."""
    least = min(node.cpus / node.gpus for node in cluster.nodes if node.gpus)
    return float(int(least)) if least >= 1 else least


def memory_share(pool: WorkerPool, cluster: ClusterSize) -> tuple[int, int]:
    """(bytes of memory, workers that share them) of the node on which a worker of a pool has least; 0 bytes: not known.

    >>> memory_share(WorkerPool(4, cpus=2.0), ClusterSize(8, 0, 4, (NodeSize(4, memory=80), NodeSize(4, memory=60))))
    (60, 2)
    """
    shares = []
    for node in cluster.nodes:
        fitting = int(min(node.cpus / pool.cpus, node.gpus / pool.gpus if pool.gpus else pool.workers))
        if fitting:
            shares.append((node.memory, min(pool.workers, fitting)))
    return min(shares, key=lambda share: share[0] / share[1], default=(0, pool.workers))


_LEAST_CPUS, _MOST_CPUS, _DATA_CPUS = 0.5, 8.0, 1.0


@dataclass(frozen=True, slots=True)
class TrainShare:
    """What each training worker reserves."""

    cpus: float
    gpu: bool


def train_share(workers: tuple[int, int], use_gpu: Literal["auto", "yes", "no"], cluster: ClusterSize) -> TrainShare:
    """A training worker's share of a cluster, with CPUs left for Ray Data, which feeds it.

    >>> train_share((1, 1), "auto", ClusterSize(2, 0, 2)).cpus, train_share((2, 2), "auto", ClusterSize(2, 0, 2)).cpus
    (1.0, 0.5)

    Data wants its CPU whole: halves on two nodes would starve it.

    >>> train_share((2, 2), "auto", ClusterSize(4, 0, node_cpus=2)).cpus
    1.0

    Args:
      workers: the least and the greatest number; the least must fit now, the greatest may wait for nodes to come.
      use_gpu: auto takes GPUs where there are enough for the least number.
      cluster: as it is now.

    Raises:
      ValueError: GPUs were asked for and are not there, or the workers can never run together; says how many fit.
    """
    least, most = workers
    _check_fit(least, use_gpu, cluster)
    gpu = use_gpu != "no" and cluster.gpus >= least
    if most > least:
        return TrainShare(_elastic_cpus(workers, gpu, cluster), gpu)
    for_data = max(_DATA_CPUS, cluster.cpus // 4)
    share = _bounded((cluster.cpus - for_data) / least, cluster)
    while share > _LEAST_CPUS and not _leaves_data_a_cpu(share, least, cluster):
        share = max(_LEAST_CPUS, _eighths(share - 1 / 8))
    return TrainShare(share, gpu)


def _leaves_data_a_cpu(share: float, workers: int, cluster: ClusterSize) -> bool:
    """Whether some node keeps a whole CPU for Ray Data, on whichever nodes Ray puts the workers.

    >>> two = ClusterSize(4, 0, node_cpus=2)
    >>> _leaves_data_a_cpu(1.5, 2, two), _leaves_data_a_cpu(1.0, 2, two)
    (False, True)
    """
    starved_by = 0
    for node in cluster.nodes:
        if node.cpus >= _DATA_CPUS:
            fewest = int((node.cpus - _DATA_CPUS) / share) + 1  # workers that leave this node less
            if fewest * share > node.cpus:
                return True
            starved_by += fewest
    return starved_by > workers


def _check_fit(workers: int, use_gpu: str, cluster: ClusterSize) -> None:
    if use_gpu == "yes" and cluster.gpus < workers:
        raise ValueError(
            f"use_gpu=yes with {workers} workers, but this cluster has {cluster.gpus:g} GPUs. "
            "Try --resources.use_gpu auto, or fewer workers."
        )
    if workers * _LEAST_CPUS > cluster.cpus - _DATA_CPUS:
        most = int((cluster.cpus - _DATA_CPUS) / _LEAST_CPUS)
        raise ValueError(
            f"workers={workers} is more than this cluster's {cluster.cpus:g} CPUs can ever give: each needs "
            f"{_LEAST_CPUS}, and Ray Data one beside them. Try --resources.workers {max(1, most)}."
        )


def _bounded(cpus: float, cluster: ClusterSize) -> float:
    return max(_LEAST_CPUS, min(_MOST_CPUS, cluster.node_cpus, cpus))


def _elastic_cpus(workers: tuple[int, int], gpu: bool, cluster: ClusterSize) -> float:
    """A share of which no node holds so many that Ray Data starves beside them, whatever nodes come or go.

    Ray Train fills each node with as many workers as fit, n = CPUs / share rounded down. (CPUs - 1) / n is a share of
    which n leave a CPU and n + 1 do not fit, as long as n < CPUs - 1. Shares are multiples of 1/8, because Ray adds
    them up, divides the sum by one of them and rounds down. Nodes are taken to be like the largest. Where workers have
    GPUs, these say how many a node holds.

    >>> _elastic_cpus((1, 2), False, ClusterSize(4, 0, 4)), _elastic_cpus((1, 4), False, ClusterSize(32, 0, 16))
    (1.5, 7.5)

    Raises:
      ValueError: the least number does not fit in this way; says how many do.
    """
    least, most = workers
    node = cluster.node_cpus
    nodes = max(1, round(cluster.cpus / node))
    if gpu:
        return _bounded(_eighths((node - _DATA_CPUS) / max(1.0, cluster.gpus / nodes)), cluster)
    shares = {n: _eighths((node - _DATA_CPUS) / n) for n in range(1, max(1, int(node) - 1))}
    legal = [n for n, share in shares.items() if share <= _MOST_CPUS and int(node / share) == n]
    if not legal or legal[-1] * nodes < least:
        fitting = legal[-1] * nodes if legal else 0
        raise ValueError(
            f"workers={least}-{most}: workers of a range fill the nodes they find, so each node keeps a CPU and a bit "
            f"for Ray Data, and {fitting} workers fit into this cluster's {nodes} nodes of {node:g} CPUs. "
            f"Try a fixed number, --resources.workers {least}."
        )
    wanted = -(-most // nodes)
    return shares[min(legal, key=lambda n: (n * nodes < least, abs(n - wanted), n))]


def _eighths(cpus: float) -> float:
    return int(cpus * 8) / 8
