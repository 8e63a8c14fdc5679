"""Processes of a block job that a test kills as fate would: a worker, a node with all it holds, the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from tessera.geometry.blocks import BlockGrid
from tessera.storage.lease import sight
from tessera.storage.ledger import ledger_path, read_job, read_rows
from tessera.storage.volumes import open_volume
from tessera.workflows.block_jobs import checksum

T = TypeVar("T")
KINDS = ("worker", "node", "driver")
PATIENCE_S = 1200
# A node counts as dead after two seconds without an answer, instead of half a minute.
_HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 4, "health_check_initial_delay_ms": 5000}


class Nodes:
    """A Ray cluster of this machine: a head that lives, and nodes that do not; each has one logical CPU.

    Attributes:
      address: for RAY_ADDRESS.
    """

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        self._memory = {"object_store_memory": 80 * 2**20}
        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": _HEALTH, **self._memory}
        self._cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        for _ in range(count):
            self.add()
        self.address = str(self._cluster.address)

    def add(self) -> None:
        _patiently(lambda: self._cluster.add_node(num_cpus=1, **self._memory))

    def kill_worker(self, rng: np.random.Generator) -> bool:
        """SIGKILL to one of the processes that hold a worker; whether there was any."""
        found = sorted((p for p in self._workers() if _title(p).startswith("ray::Worker")), key=lambda p: p.pid)
        if found:
            with suppress(psutil.NoSuchProcess):
                found[int(rng.integers(len(found)))].kill()
        return bool(found)

    def kill_node(self, rng: np.random.Generator) -> bool:
        """SIGKILL to a raylet other than the head's, with the agents beside it; another node takes its place."""
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)
        doomed = nodes[int(rng.integers(len(nodes)))]
        os.kill(doomed.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self._cluster.remove_node(doomed, allow_graceful=False)
        self.add()
        return True

    def shutdown(self) -> None:
        self._cluster.shutdown()

    def _workers(self) -> list[psutil.Process]:
        """What the raylets started; this process may have another Ray beside these nodes."""
        raylets = [node.all_processes["raylet"][0].process.pid for node in self._cluster.list_all_nodes()]
        found = []
        for pid in raylets:
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(pid).children(recursive=True)
        return found


def _patiently(start: Callable[[], T], tries: int = 4) -> T:
    """Ray waits half a minute for a node, which is not enough on a busy machine."""
    for _ in range(tries - 1):
        with suppress(Exception):
            return start()
    return start()


@contextmanager
def cluster_of(count: int) -> Iterator[Nodes]:
    nodes = Nodes(count)
    try:
        yield nodes
    finally:
        nodes.shutdown()


class Driver:
    """A command in a process of its own, on a cluster."""

    def __init__(self, command: Sequence[str], nodes: Nodes, log: Path) -> None:
        self._log = log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                stdout=stream,
                stderr=stream,
                env=os.environ | {"RAY_ADDRESS": nodes.address},
                start_new_session=True,
            )

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def interrupt(self) -> None:
        """Ctrl-C, which a terminal sends to all processes of a command; it must end soon, and leave no lease."""
        os.killpg(self._process.pid, signal.SIGINT)
        assert self._process.wait(60) != 0

    def wait(self) -> None:
        """Wait for its end, which must be a good one."""
        assert self._process.wait(PATIENCE_S) == 0, self.told()

    def told(self) -> str:
        return self._log.read_text()[-5000:]


@dataclass(frozen=True)
class Kill:
    """One kill: of what, and how many blocks were written and recorded for good in that moment."""

    kind: str
    written: int
    committed: int


def disturb(
    command: Sequence[str], output: Path, nodes: Nodes, kinds: Sequence[str], rng: np.random.Generator, most: int
) -> list[Kill]:
    """Run a job and kill, each time a seeded number of blocks, 1 to `most`, after the last kill, until it is done."""
    log, kills = output.with_name("driver.log"), []
    driver = Driver(command, nodes, log)
    try:
        for kind in kinds:
            wanted = written(output) + int(rng.integers(1, most + 1))
            _until(lambda wanted=wanted: written(output) >= wanted, driver)  # type: ignore[misc]
            kills.append(Kill(kind, written(output), len(committed(output))))
            if kind in ("driver", "ctrl-c"):
                driver.kill() if kind == "driver" else driver.interrupt()
                assert kind == "driver" or sight(ledger_path(output)) is None
                driver = Driver(command, nodes, log)
            else:
                strike = {"worker": nodes.kill_worker, "node": nodes.kill_node}[kind]
                _until(lambda strike=strike: strike(rng), driver)  # type: ignore[misc]
        driver.wait()
    finally:
        driver.kill()
    return kills


def _until(true: Callable[[], bool], driver: Driver) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert driver.alive(), f"the job ended too early: {driver.told()}"
        assert time.monotonic() < deadline, driver.told()
        time.sleep(0.02)


def written(output: Path) -> int:
    """Shards of an output that are there."""
    return sum(path.is_file() for path in (output / "0" / "c").rglob("*")) if output.exists() else 0


def committed(output: Path) -> set[int]:
    """Blocks that are recorded as done, on disk."""
    return {row.block for row in read_rows(output) if row.status == "done"}


def assert_as_if_undisturbed(output: Path, expected: NDArray[Any]) -> None:
    """Every voxel is as expected, every chunk whole, and no block that was recorded was computed again."""
    facts, volume = read_job(output)["description"], open_volume(output)
    grid, rows = BlockGrid(tuple(facts["shape"]), tuple(facts["block"])), list(read_rows(output))
    assert Counter((row.block, row.status) for row in rows) == Counter((block, "done") for block in range(len(grid)))
    for row in rows:
        box = grid.box(row.block)
        voxels = volume.read(box)
        assert checksum(voxels) == row.checksum, f"block {row.block} is torn"
        np.testing.assert_array_equal(voxels, expected[box.slices], f"block {row.block}")


def _title(process: psutil.Process) -> str:
    """What Ray calls the process; nothing where it is gone."""
    try:
        return next(iter(process.cmdline()), "")
    except psutil.Error:
        return ""
