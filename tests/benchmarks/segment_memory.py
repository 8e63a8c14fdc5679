"""Peak memory of a segmentation's worker: on a volume 8 times larger, and with 100 times as many labels.

    python tests/benchmarks/segment_memory.py [--extent 512] [--method components]

The same job runs on Ray with one worker, each time in a process of its own, on 8 blocks, on 64, and on 8 blocks of dots
instead of cells; a thread follows the resident memory of the driver and of its worker apart. Prints the table, keeps
results/segment_memory.json, exits with 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import machine
from numpy.typing import NDArray
from pairs import Estimate, estimate
from report import Aim, Outcome, tell
from segment_speed import PACKAGES, THRESHOLD, Silent, section
from worker_memory import MIB, followed
from workload import quiet

MINUTES = 6
DEPTH = 16
DOT_PX = 3
KINDS = ("small", "8 times larger", "many labels")


def shape_of(kind: str, extent: int) -> tuple[int, int, int]:
    """8 blocks of (16, extent, extent), or 64."""
    times = 4 if kind == KINDS[1] else 2
    return times * DEPTH, times * extent, times * extent


def voxels(kind: str, z: int, extent: int) -> NDArray[np.uint8]:
    """Membrane probability of one section."""
    if kind != KINDS[2]:
        return section(z, extent)
    dots = np.full((extent, extent), 255, np.uint8)
    dots[::DOT_PX, ::DOT_PX] = 0
    return dots


def measured(home: Path, kind: str, extent: int, method: str) -> dict[str, int]:
    """One job, in this process: peaks in bytes, and how many cells it found."""
    from tessera.geometry.boxes import Box
    from tessera.settings.segment import SegmentSettings
    from tessera.storage.volumes import create_volume
    from tessera.workflows.block_jobs import session
    from tessera.workflows.outputs import claimed_output
    from tessera.workflows.predict import KIND
    from tessera.workflows.segment import plan_job

    shape, block = shape_of(kind, extent), (DEPTH, extent, extent)
    told = {"kind": KIND, "complete": True, "invalid_sections": []}
    layout = {"chunk": (DEPTH, 256, 256), "shard": (DEPTH, *shape[1:])}
    volume = create_volume(home / "p.zarr", shape, np.uint8, voxel_size_nm=(50, 4, 4), attributes=told, **layout)
    for z in range(0, shape[0], DEPTH):
        slab = np.stack([voxels(kind, k, shape[1]) for k in range(z, z + DEPTH)])
        volume.write(Box((z, 0, 0), (z + DEPTH, *shape[1:])), slab)
    settings = SegmentSettings(
        str(home / "p.zarr"), str(home / "cells.zarr"), threshold=THRESHOLD, workers=1, shard=block, method=method
    )
    job, peaks = plan_job(settings, volume), dict[str, int]()
    with quiet(), session(settings), claimed_output(job.output, settings) as lease, followed(peaks):
        cells = job.run(Silent(), lease)  # type: ignore[arg-type]
    return peaks | {"cells": cells}


def apart(kind: str, extent: int, method: str) -> dict[str, int]:
    """The same in a fresh process with a home of its own, so that no peak is another job's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        words = ["--apart", made, "--kind", kind, "--extent", str(extent), "--method", method]
        environment = os.environ | {"TESSERA_HOME": made}
        done = subprocess.run(
            [sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        print(kind, found, file=sys.stderr, flush=True)
        return found


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extent", type=int, default=512)
    parser.add_argument("--method", default="components", choices=("components", "watershed"))
    parser.add_argument("--kind", default=KINDS[0], choices=KINDS, help="for this program's own use")
    parser.add_argument("--apart", default="", help="a folder to measure in, for this program's own use")
    given = parser.parse_args()
    if given.apart:
        print(json.dumps(measured(Path(given.apart), given.kind, given.extent, given.method)))
        return 0
    facts = machine(PACKAGES)
    found = {kind: apart(kind, given.extent, given.method) for kind in KINDS}
    figures: dict[str, Estimate] = {}
    for kind, row in found.items():
        figures |= {f"{kind}, {part}, MiB": estimate([row[part] / MIB]) for part in ("driver", "worker")}
        figures[f"{kind}, cells"] = estimate([row["cells"]])
    workers = {kind: row["worker"] for kind, row in found.items()}
    aims = [
        Aim("worker, 8 times larger over small", estimate([workers[KINDS[1]] / workers[KINDS[0]]]), "<=", 1.15),
        Aim("worker, many labels over small", estimate([workers[KINDS[2]] / workers[KINDS[0]]]), "<=", 1.15),
    ]
    notes = [f"{given.method}; blocks of {(DEPTH, given.extent, given.extent)}"]
    name = "segment_memory" if given.method == "components" else f"segment_memory_{given.method}"
    return tell(Outcome(name, "Peak resident memory of tessera segment on Ray", facts, figures, aims, notes))


if __name__ == "__main__":
    sys.exit(main())
