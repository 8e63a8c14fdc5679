"""Ingest of a sparse 64 x 30,000 x 30,000 TIFF: peak memory, time, and what a kill costs.

    python tests/benchmarks/ingest_memory.py

    BigTIFF, compressed strips of 8 rows as wide as the section, most of them holes
      +-- one row of shards is full, 16 x 1024 x 30,000 voxels: where the peak is
      +-- a third of section 37 is full, so that 300 further shards hold something
      +-- the rest is a strip here and there

The real command runs on Ray in a process of its own, is killed with all of its processes when a part of the shards is
recorded, and is given again. The memory is that of the driver and its workers together; Ray's own processes, its idle
workers among them, are a figure of their own. Voxels are compared with what dask reads, window by window. Exits with 1
where an aim is missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen

import numpy as np
import psutil
from machine import ROOT, machine
from pairs import estimate
from report import Aim, Outcome, tell

sys.path.insert(0, str(ROOT / "tests"))
from sparse_tiff import write_sparse
from tessera.geometry.boxes import Box
from tessera.storage.dask_windows import opened_with_dask
from tessera.storage.ledger import read_rows
from tessera.storage.stacks import open_stack
from tessera.storage.volumes import open_volume

MINUTES = 12
SHAPE, STRIP, SHARD = (64, 30_000, 30_000), 8, (16, 1024, 1024)
# In the middle of section 37.
PART = 0.5
WINDOWS = 60
# Sections and rows of the row of shards that is full.
FULL = (range(16), range(4096, 5120))


def write_source(path: Path) -> int:
    """The TIFF; returns how many of its strips hold something."""
    rng = np.random.default_rng(7)
    texture = np.clip(rng.normal(128, 20, (STRIP, SHAPE[2])), 1, 255).astype(np.uint8)

    def content(z: int, index: int) -> np.ndarray | None:
        row = index * STRIP
        if (z == 37 and row < 10_000) or (z in FULL[0] and row in FULL[1]) or (z * 3750 + index) % 40_009 == 0:
            return np.roll(texture, (z * 1009 + index * 53) % SHAPE[2], axis=1)[: SHAPE[1] - row]
        return None

    return write_sparse(path, SHAPE, (STRIP, SHAPE[2]), content)


@dataclass
class Ingest:
    """The command while it runs, and the most memory seen: of the driver, its workers, both at one moment, and Ray."""

    process: Popen[bytes]
    driver: int = 0
    workers: int = 0
    together: int = 0
    ray: int = 0

    def look(self) -> None:
        """Take a sample."""
        driver = workers = ray = 0
        for process in _family(self.process.pid):
            try:
                name, used = next(iter(process.cmdline()), ""), process.memory_info().rss
            except psutil.Error:
                continue
            if process.pid == self.process.pid:
                driver += used
            elif name.startswith("ray::Worker"):
                workers += used
            else:
                ray += used
        self.ray = max(self.ray, ray)
        self.driver, self.workers = max(self.driver, driver), max(self.workers, workers)
        self.together = max(self.together, driver + workers)

    def kill(self) -> None:
        """SIGKILL to the driver, its workers and its Ray, all at once."""
        family = _family(self.process.pid)
        for process in family:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(family, timeout=60)
        self.process.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def started(source: Path, output: Path, home: Path) -> Ingest:
    """Begin the command."""
    words = ["ingest", "--source", source, "--output", output, "--voxel_size_nm", "[50,4,4]"]
    command = [sys.executable, "-m", "tessera.cli", *map(str, words)]
    environment = os.environ | {"TESSERA_HOME": str(home)}
    return Ingest(Popen(command, env=environment, stdout=DEVNULL))


def recorded(output: Path) -> list[int]:
    """Shards whose rows are durable, once for each time."""
    return [row.block for row in read_rows(output) if row.status == "done"]


def run_until(ingest: Ingest, output: Path, shards: float) -> bool:
    """Watch until so many shards are recorded, or the command is done; whether it is not."""
    looked = 0.0
    while ingest.process.poll() is None:
        ingest.look()
        time.sleep(0.1)
        if time.monotonic() - looked > 2:
            looked = time.monotonic()
            if len(recorded(output)) >= shards:
                return True
    return False


def differing_voxels(source: Path, output: Path) -> int:
    """Voxels of seeded windows, every other one where something is stored, that are not as dask reads them."""
    stack, volume, rng = open_stack(source, kind="image"), open_volume(output), np.random.default_rng(3)
    different = 0
    for number in range(WINDOWS):
        z = int(rng.integers(SHAPE[0])) if number % 2 else int(rng.choice([37, 3, 15]))
        y = int(rng.integers(4000, 5200)) if z < 16 else int(rng.integers(SHAPE[1]))
        x = int(rng.integers(SHAPE[2] - 300))
        window = Box((y, x), (min(y + 200, SHAPE[1]), x + 300))
        with stack.opened(z, opened_with_dask) as section:
            expected = section.read(window)
        found = volume.read(Box((z, *window.start), (z + 1, *window.stop)))[0]
        different += int((found != expected).sum())
    return different


def shards_on_disk(output: Path) -> int:
    """Objects of the array, half-written ones not counted."""
    return sum(path.name.isdigit() for path in (output / "0").rglob("*") if path.is_file())


def measured(folder: Path) -> tuple[dict[str, float], Sequence[Ingest]]:
    """Figures by name, and both runs."""
    source, output = folder / "sparse.tif", folder / "sparse.zarr"
    strips = write_source(source)
    total = -(-SHAPE[0] // SHARD[0]) * -(-SHAPE[1] // SHARD[1]) * -(-SHAPE[2] // SHARD[2])
    begun = time.perf_counter()
    first = started(source, output, folder)
    killed = run_until(first, output, PART * total)
    first.kill()
    before, on_disk, first_s = set(recorded(output)), shards_on_disk(output), time.perf_counter() - begun
    begun = time.perf_counter()
    second = started(source, output, folder)
    run_until(second, output, float("inf"))
    rows = [row for row in read_rows(output) if row.status == "done"]
    decoded = sum(row.values["decoded"] for row in rows)
    return {
        "strips that hold something": strips,
        "strips decoded by recorded shards": decoded,
        "killed midway": float(killed),
        "shards": total,
        "shards recorded at the kill": len(before),
        "shards on disk at the kill": on_disk,
        "recorded shards made again": len(rows) - len({row.block for row in rows}),
        "shards missing": total - len({row.block for row in rows}) + float(second.process.returncode != 0),
        "seconds to the kill": first_s,
        "seconds from there to the end": time.perf_counter() - begun,
        "voxels unlike dask's": differing_voxels(source, output),
    }, (first, second)


def main() -> int:
    """Measure, print and keep."""
    facts = machine(("ray", "zarr", "tifffile", "dask", "numpy"))
    with tempfile.TemporaryDirectory(dir=os.environ.get("TESSERA_BENCH_DIR")) as folder:
        figures, runs = measured(Path(folder))
    gib = {
        "peak of the driver, GiB": max(run.driver for run in runs) / 2**30,
        "peak of the worker, GiB": max(run.workers for run in runs) / 2**30,
        "peak of both together, GiB": max(run.together for run in runs) / 2**30,
        "peak of Ray's own processes, GiB": max(run.ray for run in runs) / 2**30,
    }
    figures |= gib
    estimates = {name: estimate([value]) for name, value in figures.items()}
    aims = [
        Aim("peak of both together, GiB", estimates["peak of both together, GiB"], "<=", 1.0),
        Aim("killed midway", estimates["killed midway"], ">=", 1),
        Aim("recorded shards made again", estimates["recorded shards made again"], "<=", 0),
        Aim("shards missing", estimates["shards missing"], "<=", 0),
        Aim("voxels unlike dask's", estimates["voxels unlike dask's"], "<=", 0),
    ]
    what = (
        "Ingest of a sparse 64 x 30,000 x 30,000 uint8 BigTIFF (zstd strips of 8 rows, one row of shards and a "
        "third of a section full) by `tessera ingest` on Ray, killed once and given again"
    )
    notes = [
        "Memory: resident bytes of the driver and its worker, sampled ten times a second.",
        "Strips decoded: those of shards that were recorded; a row in the making at the kill is decoded again.",
    ]
    return tell(Outcome("ingest_memory", what, facts, estimates, aims, notes))


if __name__ == "__main__":
    sys.exit(main())
