"""How many workers, with how much of the cluster each."""

from __future__ import annotations

from tessera.engine.blocks import WorkerPool


def block_pool(workers: int, cpus: float, gpus: float) -> WorkerPool:
    """A pool for block work on a cluster of `cpus` and `gpus`; 0 workers means: choose.

    One worker per GPU where there are GPUs; else one per 8 cores, because one network on 8 cores shares its weights
    and wastes no import, while a second one would only compete with it.

    >>> block_pool(0, cpus=16, gpus=0).workers, block_pool(0, cpus=2, gpus=0).cpus
    (2, 2.0)

    Raises:
      ValueError: more workers than the cluster can ever run.
    """
    if workers > max(cpus, gpus):
        raise ValueError(
            f"workers={workers} is more than this cluster's {cpus:g} CPUs can ever run at once. "
            f"Try workers={int(cpus)}."
        )
    count = workers or int(gpus) or max(1, int(cpus) // 8)
    return WorkerPool(count, cpus=float(max(1, int(cpus // count))), gpus=1.0 if 0 < count <= gpus else 0.0)
