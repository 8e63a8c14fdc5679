"""A ledger of a million blocks: what opening it, planning the job and recording blocks take, and how much memory.

Each figure is that of a process of its own, as a driver's is. The rows are those of real jobs: checksums, seconds,
details; a thousandth of the blocks was given up. Planning is what `tessera predict` does before its first block: layout
and block, the ledger, and here also every task that it would hand to a worker, which a job draws one by one.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine
from pairs import estimate
from report import Aim, Outcome, tell

from tessera.settings.common import OutputSettings
from tessera.storage.ledger import Ledger, LedgerRow
from tessera.storage.ledger_parts import list_parts
from tessera.storage.ledger_states import read_states
from tessera.storage.locations import place_of
from tessera.workflows.outputs import OutputPlan, plan_output

MINUTES = 4.0
BLOCKS = 1_000_000
ROUNDS = 5


def plan(folder: Path, blocks: int = BLOCKS) -> OutputPlan:
    """A prediction of `blocks` blocks of one shard each."""
    shape = (64 * 100, 1024 * 100, 1024 * (blocks // 10_000))
    settings, path = OutputSettings(), str(folder / "out.zarr")
    facts = {"made_by": "predict", "kind": "membrane probability", "voxel_size_nm": (50.0, 4.0, 4.0), "depends_on": {}}
    return plan_output(settings, path, shape, np.uint8, block=(64, 1024, 1024), **facts)


def opened(output: OutputPlan) -> Ledger:
    """The ledger of a plan."""
    return Ledger.open(output.path, output.key, output.facts)


def write(folder: Path, blocks: int = BLOCKS) -> float:
    """Record every block; blocks per second."""
    output, rng = plan(folder, blocks), np.random.default_rng(0)
    sums = [f"{n:016x}" for n in rng.integers(2**62, size=1000)]
    start = time.perf_counter()
    with opened(output) as ledger:
        for block in range(blocks):
            failed = block % 1000 == 999
            values = {"bytes": 2**26, "checksum": sums[block % 1000], "compute_seconds": 8.0 + block % 7}
            outcome = {"error": "OSError: gone", "attempt": 3} if failed else values
            ledger.append(LedgerRow(block, "failed" if failed else "done", finished_at=1e9 + block, **outcome))  # type: ignore[arg-type]
    return blocks / (time.perf_counter() - start)


def load(folder: Path, blocks: int = BLOCKS) -> float:
    """Open the full ledger; seconds."""
    output = plan(folder, blocks)
    start = time.perf_counter()
    with opened(output) as ledger:
        seconds = time.perf_counter() - start
        assert len(ledger.done()) == blocks - blocks // 1000 == blocks - len(ledger.failed())
    return seconds


def look(folder: Path, blocks: int = BLOCKS) -> float:
    """What `tessera status` reads; seconds."""
    start = time.perf_counter()
    states = read_states(place_of(str(folder / "out.zarr")))
    assert len(states.block) == blocks
    return time.perf_counter() - start


def plan_all(folder: Path, blocks: int = BLOCKS) -> float:
    """Plan a new job and draw each of its tasks; seconds."""
    start = time.perf_counter()
    output = plan(folder / "new", blocks)
    with opened(output) as ledger:
        grid, count = output.grid, 0
        for block in ledger.to_do(len(grid)):
            count += grid.box(block).size > 0
        assert count == blocks
    return time.perf_counter() - start


def sums(folder: Path, blocks: int = BLOCKS) -> float:
    """The recorded checksum of each block, as a recheck draws them; seconds."""
    output = plan(folder, blocks)
    with opened(output) as ledger:
        start = time.perf_counter()
        assert sum(1 for _ in ledger.checksums()) == blocks - blocks // 1000
        return time.perf_counter() - start


DEEDS: dict[str, Callable[[Path], float]] = {f.__name__: f for f in (write, load, look, plan_all, sums)}


def in_a_process(deed: str, folder: Path) -> tuple[float, float, float]:
    """A deed's figure, its processor seconds, and by how many bytes a block the peak of its process's memory grew."""
    command = [sys.executable, __file__, deed, str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figure, processor, grown = json.loads(told)
    return figure, processor, grown / BLOCKS


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Fill a ledger once, then measure in turns."""
    on = machine(("numpy", "pyarrow"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rate, _, _ = in_a_process("write", folder)
        parts = len(list_parts(folder / "out.zarr.ledger"))
        kept = sum(path.stat().st_size for path in (folder / "out.zarr.ledger").iterdir())
        rounds: dict[str, list[tuple[float, float, float]]] = {
            deed: [] for deed in ("load", "look", "plan_all", "sums")
        }
        for turn in range(ROUNDS):
            for deed, found in rounds.items():
                found.append(in_a_process(deed, folder))
            print(f"round {turn + 1} of {ROUNDS}: {[found[-1] for found in rounds.values()]}", file=sys.stderr)
    seconds, processor, memory = (
        {deed: estimate([one[at] for one in found]) for deed, found in rounds.items()} for at in range(3)
    )
    figures = {
        "ledger of 10^6 blocks, opened, s": seconds["load"],
        "10^6 blocks, planned, every task drawn, s": seconds["plan_all"],
        "10^6 blocks, read by an onlooker (status), s": seconds["look"],
        "10^6 checksums, drawn for a recheck, s": seconds["sums"],
        "the same of opening, processor seconds": processor["load"],
        "the same of planning, processor seconds": processor["plan_all"],
        "peak memory while opened, bytes a block": memory["load"],
        "peak memory while planned, bytes a block": memory["plan_all"],
        "peak memory of an onlooker, bytes a block": memory["look"],
    }
    aims = [
        Aim("seconds to open a ledger of 10^6 blocks", seconds["load"], "<=", 5.0),
        Aim("seconds to plan 10^6 blocks", seconds["plan_all"], "<=", 10.0),
    ]
    notes = [
        f"the ledger: {parts} parts, {kept / BLOCKS:.1f} bytes a block on disk, recorded at {rate:,.0f} blocks/s",
        "seconds are wall time, in which other work on the machine counts; processor seconds are of all threads",
        "memory: growth of the process's peak over what its imports took",
    ]
    what = f"A ledger of {BLOCKS:,} blocks on a local disk, medians of {ROUNDS} processes each."
    outcome = Outcome("ledger_scale", what, on, figures, aims, notes)
    return tell(outcome)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        before = _peak()
        begun = time.process_time()
        measured = DEEDS[sys.argv[1]](Path(sys.argv[2]))
        print(json.dumps([measured, time.process_time() - begun, _peak() - before]))
        sys.exit(0)
    sys.exit(main())
