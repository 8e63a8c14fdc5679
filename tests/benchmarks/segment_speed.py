"""Speed of cells by components, the whole job, against dask-image writing the same Zarr and cc3d on an array in memory.

    python tests/benchmarks/segment_speed.py [--sections 128] [--extent 1024] [--rounds 3]

The probability is smoothed noise of which 40% is cell, bytes in Zarr. Each round runs the job on Ray with a worker per
core, into a new output; what counts is the time that blocks were worked on, in all of its passes, seams and numbering
included: workers' start is told apart. dask-image labels the same probability per section and writes uint64 in the same
chunks and shards. Prints the table, keeps results/segment_speed.json, exits with 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from pairs import estimate, interleaved, ratio
from report import Aim, Outcome, tell
from scipy import ndimage
from workload import quiet

MINUTES = 12
THRESHOLD = 0.5
CELL_SHARE = 0.4
SLAB = 16
DISTINCT = 16
PACKAGES = ("connected-components-3d", "dask-image", "dask", "numpy", "zarr", "ray")


@dataclass(frozen=True)
class Work:
    """What is labelled: a volume of probability in a folder."""

    home: Path
    shape: tuple[int, int, int]

    @property
    def probability(self) -> Path:
        return self.home / "probability.zarr"

    @property
    def megavoxels(self) -> float:
        return float(np.prod(self.shape)) / 1e6


def section(z: int, extent: int) -> NDArray[np.uint8]:
    """Membrane probability of one section as bytes: of a few, each shifted anew, for smoothing takes its time."""
    turn = z // DISTINCT
    return np.roll(_distinct(z % DISTINCT, extent), (turn * 37, turn * 61), axis=(0, 1))


@lru_cache(maxsize=DISTINCT)
def _distinct(z: int, extent: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(z).standard_normal((extent, extent), np.float32)
    smooth = ndimage.gaussian_filter(noise, 4.0, mode="wrap")
    steep = (np.quantile(smooth, 1 - CELL_SHARE) - smooth) / smooth.std()
    return np.rint(255 / (1 + np.exp(-12 * steep))).astype(np.uint8)


def put_probability(work: Work) -> None:
    """Write it, as `tessera predict` would."""
    from tessera.geometry.boxes import Box
    from tessera.storage.volumes import create_volume
    from tessera.workflows.predict import KIND

    told = {"kind": KIND, "complete": True, "invalid_sections": []}
    layout = {"chunk": (SLAB, 256, 256), "shard": (SLAB, work.shape[1], work.shape[2])}
    volume = create_volume(work.probability, work.shape, np.uint8, voxel_size_nm=(50, 4, 4), attributes=told, **layout)
    for z in range(0, work.shape[0], SLAB):
        box = Box((z, 0, 0), (min(z + SLAB, work.shape[0]), *work.shape[1:]))
        volume.write(box, np.stack([section(k, work.shape[1]) for k in range(box.start[0], box.stop[0])]))


class Silent:
    """In place of a run's reports: MLflow is no part of what the peers do either."""

    def over_time(self, stage: str = "") -> None:
        return None

    def summary(self, values: Any) -> None:
        return None


def ours(work: Work) -> tuple[float, float]:
    """Run the job; returns Mvoxel/s while blocks were worked on, and with the start of workers."""
    from tessera.settings.segment import SegmentSettings
    from tessera.storage.volumes import open_volume
    from tessera.workflows.outputs import claimed_output
    from tessera.workflows.segment import plan_job

    output = work.home / "cells.zarr"
    settings = SegmentSettings(
        str(work.probability), str(output), threshold=THRESHOLD, workers=os.cpu_count() or 1, overwrite=True
    )
    start = time.perf_counter()
    job = plan_job(settings, open_volume(work.probability))
    with quiet(), claimed_output(job.output, settings) as lease:
        job.run(Silent(), lease)  # type: ignore[arg-type]
    whole = time.perf_counter() - start
    return work.megavoxels / busy_seconds(output), work.megavoxels / whole


def busy_seconds(output: Path) -> float:
    """From the first block's begin to the last one's end, pass by pass."""
    from tessera.storage.ledger import read_rows
    from tessera.storage.ledger_states import stages_of

    seconds = 0.0
    for stage in stages_of(output):
        rows = list(read_rows(output, stage=stage))
        begun = (row.finished_at - row.read_seconds - row.compute_seconds - row.write_seconds for row in rows)
        seconds += max(row.finished_at for row in rows) - min(begun)
    return seconds


def dask_image(work: Work) -> float:
    """Label per section with dask-image and write uint64; Mvoxel/s."""
    import dask.array
    import zarr
    from dask_image import ndmeasure

    from tessera.storage.volumes import open_volume

    output, layout = work.home / "theirs.zarr", open_volume(work.home / "cells.zarr")
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    stored = zarr.open_array(work.probability / "0", mode="r")
    mask = dask.array.from_array(stored, chunks=layout.shard) < 255 * (1 - THRESHOLD)
    structure = ndimage.generate_binary_structure(3, 1)
    structure[[0, 2]] = False
    labels, _ = ndmeasure.label(mask, structure)
    target = zarr.create_array(
        output, shape=work.shape, dtype="uint64", chunks=layout.chunk, shards=layout.shard, overwrite=True
    )
    dask.array.store(labels.astype("uint64").rechunk(layout.shard), target, lock=False)
    return work.megavoxels / (time.perf_counter() - start)


def cc3d_in_memory(mask: NDArray[np.bool_]) -> float:
    """Label the array's sections as one process does, without reading or writing; Mvoxel/s."""
    import cc3d

    start = time.perf_counter()
    cc3d.connected_components(mask, connectivity=6, binary_image=True)
    return mask.size / 1e6 / (time.perf_counter() - start)


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sections", type=int, default=128)
    parser.add_argument("--extent", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from tessera.engine.session import connected

    facts = machine(PACKAGES)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made, connected():
        os.environ["TESSERA_HOME"] = made
        work = Work(Path(made), (given.sections, given.extent, given.extent))
        put_probability(work)
        mask = np.stack([section(z, given.extent) for z in range(given.sections)]) < 255 * (1 - THRESHOLD)
        ours(work)  # warm
        with_start: list[float] = []

        def job() -> float:
            busy, whole = ours(work)
            with_start.append(whole)
            return busy

        arms = {"tessera": job, "dask_image": lambda: dask_image(work), "cc3d": lambda: cc3d_in_memory(mask)}
        speeds = interleaved(arms, given.rounds)
    figures = {f"{name}, Mvoxel/s": estimate(found) for name, found in speeds.items()}
    figures["tessera with the start of its workers, Mvoxel/s"] = estimate(with_start)
    aims = [
        Aim("over dask-image writing the same Zarr", ratio(speeds["tessera"], speeds["dask_image"]), ">=", 20.0),
        Aim("over cc3d on an array in memory", ratio(speeds["tessera"], speeds["cc3d"]), ">=", 0.25),
    ]
    notes = [f"{work.shape}, {mask.mean():.0%} cell, 4 neighbours; cc3d labels with 6, its fastest"]
    what = "Cells by components, probability to uint64 labels in Zarr, once warm"
    return tell(Outcome("segment_speed", what, facts, figures, aims, notes))


if __name__ == "__main__":
    sys.exit(main())
