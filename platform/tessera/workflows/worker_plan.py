"""What one worker of a prediction needs, and which tile it gets: planned before anything runs.

    memory of a worker = process + weights + blocks in flight + one pass of the network      all in bytes, all stated

Whatever the budget leaves for the pass goes to the tile, because a larger one wastes less on its halo (tile_plan.py).
The volume's extent is nowhere in it: a worker's memory depends on the block, the tile and the network alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path

import numpy as np
import psutil

from tessera.geometry.arithmetic import Arithmetic
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.network_cost import FLOAT_BYTES, NetworkCost
from tessera.geometry.tile_plan import NoTileFitsError, TilePlan, block_extents, given_tile, plan_tile
from tessera.model.bundle import Contract
from tessera.model.spec import UnetSpec
from tessera.settings.predict import PredictSettings
from tessera.workflows.outputs import OutputPlan

MIB, GIB = 2**20, 2**30

# Measured on Linux with TensorFlow 2.21, Ray 2.60 and 2 threads by tests/benchmarks/worker_memory.py, which fails
# where a worker's peak is above what is planned here, or below half of it.
PROCESS_BYTES = 1250 * MIB
"""A worker before its first block: Python, TensorFlow, Ray and Zarr, and what TensorFlow sets up for a first pass."""
WEIGHT_COPIES = 4
"""The graph as stored, its valid twin, and what the kernels rearrange for themselves."""
ACTIVATION_SLACK = 1.15
"""Arrays that the allocator cuts and aligns take more than their voxels."""
OUTPUT_COPIES = 8
"""Of a tile's output: logits, the sigmoid's steps, the mean over symmetries."""
NODE_SHARE = 0.75
"""Of a node's memory, what its workers may take together; the rest is the system's, the driver's and Ray's."""


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """The most that one worker takes, in bytes.

    Attributes:
      process: before any block.
      weights: the network's.
      blocks: of blocks in flight: raw, normalised, predicted and encoded voxels.
      network: of one pass: activations, and its output.
    """

    process: int
    weights: int
    blocks: int
    network: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / GIB:.2f}" for field in fields(self))
        return f"{self.total / GIB:.2f} GiB ({parts})"


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """A worker's tile and memory.

    Attributes:
      tile: what it computes at once; `tile.flops` is per block.
      memory: what it takes.
      budget_bytes: what it may take.
    """

    tile: TilePlan
    memory: WorkerMemory
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class BlockWork:
    """What a worker is to do, as far as its memory goes.

    Attributes:
      network: the model's.
      grid: the output's blocks.
      start: where the output's voxel 0 lies in the raw volume.
      raw_bytes: of one raw voxel.
      output_bytes: of one output voxel.
      in_flight: blocks open at once.
    """

    network: UnetSpec
    grid: BlockGrid
    start: tuple[int, ...]
    raw_bytes: int = 1
    output_bytes: int = 1
    in_flight: int = 2

    @property
    def arithmetic(self) -> Arithmetic:
        """The network's."""
        return self.network.arithmetic

    @property
    def extents(self) -> tuple[int, ...]:
        """Of a block, from the network's grid on."""
        return block_extents(self.grid, self.start, self.arithmetic)


def plan_worker(work: BlockWork, tile: Sequence[int] | None, budget_bytes: int) -> WorkerPlan:
    """The tile of fewest operations within a budget, or the one that was given, and the memory that it takes.

    Args:
      work: what is to be done.
      tile: the user's choice; None leaves it to the planner.
      budget_bytes: of one worker.

    Raises:
      ValueError: not even the smallest tile fits; says what would.
    """
    cost, arithmetic, extents = work.network.cost, work.arithmetic, work.extents
    if tile is not None:
        plan = given_tile(tile, extents, arithmetic, cost)
        return WorkerPlan(plan, worker_memory(work, plan), budget_bytes)
    smallest = given_tile((1, 1, 1), extents, arithmetic, cost)
    # What a pass needs besides its activations grows with them, so both shrink together until all of it fits.
    left = budget_bytes - worker_memory(work, smallest).total + _pass_bytes(cost, smallest)
    room = int(left / ACTIVATION_SLACK)
    while True:
        try:
            plan = plan_tile(extents, arithmetic, cost, room)
        except NoTileFitsError as error:
            raise ValueError(_too_little(work, smallest, budget_bytes, error)) from None
        memory = worker_memory(work, plan)
        if memory.total <= budget_bytes:
            return WorkerPlan(plan, memory, budget_bytes)
        room = plan.activation_bytes - 1


def _too_little(work: BlockWork, smallest: TilePlan, budget_bytes: int, error: NoTileFitsError) -> str:
    need = worker_memory(work, smallest)
    return (
        f"a worker may take {budget_bytes / GIB:.2f} GiB and needs {need}: {error}. It would be killed for its memory. "
        f"Try --memory_gib {need.total / GIB + 0.05:.1f}, fewer workers on a node, or a smaller block than "
        f"{list(work.grid.block)}."
    )


def worker_memory(work: BlockWork, plan: TilePlan) -> WorkerMemory:
    """What a worker takes with a tile."""
    cost = work.network.cost
    context = prod(extent + 2 * halo for extent, halo in zip(work.extents, work.arithmetic.halo, strict=True))
    core = prod(min(block, whole) for block, whole in zip(work.grid.block, work.grid.shape, strict=True))
    # Normalised in float32, or by way of float64 where that cannot hold the raw integers; mirrored in a copy.
    working = FLOAT_BYTES if work.raw_bytes <= 2 else 2 * FLOAT_BYTES
    one = context * (working + max(work.raw_bytes, FLOAT_BYTES)) + core * (FLOAT_BYTES + 1 + 2 * work.output_bytes)
    open_blocks = min(work.in_flight, len(work.grid))
    return WorkerMemory(PROCESS_BYTES, WEIGHT_COPIES * cost.weight_bytes, open_blocks * one, _pass_bytes(cost, plan))


def _pass_bytes(cost: NetworkCost, plan: TilePlan) -> int:
    return int(ACTIVATION_SLACK * plan.activation_bytes) + OUTPUT_COPIES * FLOAT_BYTES * prod(plan.input_shape)


def planned(
    settings: PredictSettings, contract: Contract, output: OutputPlan, start: tuple[int, ...], share: int | None = None
) -> WorkerPlan:
    """What each worker of a prediction gets and takes.

    Args:
      settings: the prediction's: tile, workers and memory.
      contract: the model's.
      output: the volume to be made.
      start: where its voxel 0 lies in the raw volume.
      share: bytes of its node that each worker may take, see `share_of_node`; None, before Ray is
        connected and for the serial engine, is what this machine has.

    Raises:
      ValueError: the memory is too small.
    """
    raw_bytes, output_bytes = (np.dtype(kind).itemsize for kind in (contract.input_dtype, output.dtype))
    in_flight = 1 if settings.engine == "serial" else 2
    work = BlockWork(contract.network, output.grid, start, raw_bytes, output_bytes, in_flight)
    if settings.memory_gib is not None:
        return plan_worker(work, settings.tile, int(settings.memory_gib * GIB))
    return plan_worker(work, settings.tile, share or _lent(machine_memory_bytes(), 1))


def share_of_node(settings: PredictSettings) -> int | None:
    """Bytes of its node that each worker may take, in the Ray that is connected; None for the serial engine."""
    if settings.engine == "serial":
        return None
    from tessera.engine.placement import block_pool, memory_share
    from tessera.engine.session import cluster_size

    cluster = cluster_size()
    lent, on_node = memory_share(block_pool(settings.workers, cluster), cluster)
    if not os.environ.get("RAY_ADDRESS") or not lent:
        return _lent(machine_memory_bytes(), on_node)
    # What Ray lends is what was free when it started: rounded, so that a job that is resumed gets the same tile.
    return max(1, lent // (4 * GIB)) * 4 * GIB // on_node


def _lent(memory_bytes: int, workers: int) -> int:
    return int(NODE_SHARE * memory_bytes) // workers


_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory_bytes() -> int:
    """Of this machine, or of the container that this process runs in."""
    found = [int(psutil.virtual_memory().total)]
    for name in _CGROUP_LIMITS:
        path = Path(name)
        text = path.read_text().strip() if path.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found)
