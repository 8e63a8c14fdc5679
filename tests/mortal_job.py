"""A block job with a cheap predictor, as a driver of its own: `python mortal_job.py RAW OUTPUT WORKERS`.

It is what tests kill that need no network: its worker starts in a second, and each voxel depends on its neighbours.
"""

from __future__ import annotations

import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.engine.tasks import Process
from tessera.geometry.boxes import Box
from tessera.images.mirror import read_mirrored
from tessera.settings.common import OutputSettings
from tessera.storage.ledger import Ledger
from tessera.storage.volumes import open_volume
from tessera.workflows.block_jobs import checksum, run_block_job, session
from tessera.workflows.outputs import claimed_output, plan_output

SHAPE, BLOCK = (8, 256, 512), (2, 64, 64)
HALO = (0, 1, 1)
SECONDS = 0.2


def smooth(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of the 3 x 3 neighbours of each pixel that has them all, rounded down; (z, y, x)."""
    _, height, width = image.shape
    shifted = [image[:, y : height - 2 + y, x : width - 2 + x].astype(int) for y in range(3) for x in range(3)]
    return (sum(shifted) // 9).astype(np.uint8)  # type: ignore[union-attr]


def oracle(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole output at once."""
    return smooth(np.pad(raw, [(halo, halo) for halo in HALO], mode="reflect"))


def make_worker(raw: Path, output: Path) -> Process:
    """Opens the volumes; what it returns takes `SECONDS` for a block."""
    source, target = open_volume(raw), open_volume(output, writable=True)

    def process(item: tuple[int, Box]) -> dict[str, Any]:
        _, box = item
        time.sleep(SECONDS)
        voxels = smooth(read_mirrored(source.read, source.shape, box.grown(HALO)))
        target.write(box, voxels)
        return {"bytes": voxels.nbytes, "checksum": checksum(voxels)}

    return process


def main(raw: Path, output: Path, workers: int) -> None:
    """Run the job, or go on with it."""
    # The job takes seconds: rows that wait for ten would all be lost with the driver.
    Ledger.open.__func__.__kwdefaults__["flush_seconds"] = 0.3  # type: ignore[attr-defined]
    settings = OutputSettings(workers=workers, attempts=5, chunk=(1, 32, 32), shard=BLOCK)
    plan = plan_output(
        settings,
        str(output),
        SHAPE,
        np.uint8,
        made_by="smooth",
        kind="test",
        voxel_size_nm=(50, 4, 4),
        depends_on={"input": str(raw)},
    )
    with session(settings), claimed_output(plan, settings) as lease:
        run_block_job(plan, partial(make_worker, raw, output), settings, lease=lease)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
