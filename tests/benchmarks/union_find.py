"""The driver's union-find at 10^8 edges: peak memory and time, simulated, in a process of its own.

    python tests/benchmarks/union_find.py [--edges 100000000]

Blocks in a row, each with a rim of 10,000 labels; an edge joins a label with one near the same place in the next block,
as seams do. Edges come in batches of a block's seam, as they are read from disk, and are never held together. Prints
the table, keeps results/union_find.json, exits with 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from machine import machine
from numpy.typing import NDArray
from pairs import estimate
from report import Aim, Outcome, tell

MINUTES = 4
RIM = 10_000
PER_BLOCK = 10_000
GIB = 2**30


def seams(blocks: int) -> Iterator[NDArray[np.int64]]:
    """The edges of each block with the next one: int64, (n, 2)."""
    rng = np.random.default_rng(0)
    for block in range(blocks - 1):
        at = rng.integers(0, RIM, PER_BLOCK)
        to = np.clip(at + rng.integers(-2, 3, PER_BLOCK), 0, RIM - 1)
        yield np.stack([block * RIM + at, (block + 1) * RIM + to], axis=1)


def measured(edges: int) -> dict[str, float]:
    """In this process: what joining and numbering them takes."""
    from tessera.labels.disjoint import DisjointSets
    from tessera.labels.merge import consecutive_numbering

    blocks = edges // PER_BLOCK + 1
    start, sets, held, batch = time.perf_counter(), DisjointSets(blocks * RIM), 0, []
    for seam in seams(blocks):
        batch.append(seam)
        held += len(seam)
        if held >= 1 << 20:
            sets.join(np.concatenate(batch))
            batch, held = [], 0
    sets.join(np.concatenate([np.empty((0, 2), np.int64), *batch]))
    numbering = consecutive_numbering([2 * RIM] * blocks, [RIM] * blocks, sets.roots())
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "edges": (blocks - 1) * PER_BLOCK, "objects": numbering.total}


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edges", type=int, default=10**8)
    parser.add_argument("--apart", action="store_true", help="measure in this process, for this program's own use")
    given = parser.parse_args()
    if given.apart:
        print(json.dumps(measured(given.edges)))
        return 0
    facts = machine()
    command = [sys.executable, __file__, "--apart", "--edges", str(given.edges)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    peak, seconds = estimate([found["peak_bytes"] / GIB]), estimate([found["seconds"]])
    figures = {"seconds": seconds, "peak, GiB": peak, "edges": estimate([found["edges"]])}
    aims = [Aim("peak memory, GiB", peak, "<=", 8.0)]
    notes = [f"{found['objects']} objects; rims of {RIM} labels, {PER_BLOCK} edges between two blocks"]
    what = "Joining and numbering what touches across seams, simulated, with edges that come in batches"
    return tell(Outcome("union_find", what, facts, figures, aims, notes))


if __name__ == "__main__":
    sys.exit(main())
