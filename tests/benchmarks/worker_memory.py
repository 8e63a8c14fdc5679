"""Peak memory of a prediction's worker and of its driver: on a volume 8 times larger, and against the plan.

    python tests/benchmarks/worker_memory.py [--extent 4096]

The same job runs on 4 blocks and on 32, on Ray with one worker, each in a process of its own; a thread follows the
resident memory of the driver and of its worker apart. A third job has less memory than it would take, so
that the planner must cut smaller tiles. Prints the table, keeps results/worker_memory.json, exits with 1 where an aim
is missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from machine import machine
from pairs import Estimate, estimate
from report import Aim, Outcome, tell
from workload import Workload, asked_for, prediction, put_bundle, put_volume, quiet

MINUTES = 6
MIB = 2**20
USUAL = replace(Workload(), extent=1024, block=(4, 512, 512), network=replace(Workload().network, filters=8))
LARGER = 8
LOOK_S = 0.05


@contextmanager
def followed(peaks: dict[str, int]) -> Iterator[None]:
    """While the block runs, keep the most resident memory of this process and of its largest Ray worker."""
    stop, own = threading.Event(), psutil.Process()

    def follow() -> None:
        while not stop.wait(LOOK_S):
            peaks["driver"] = max(peaks.get("driver", 0), own.memory_info().rss)
            for child in own.children(recursive=True):
                peaks["worker"] = max(peaks.get("worker", 0), _worker_bytes(child))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _worker_bytes(process: psutil.Process) -> int:
    """Its resident memory where it is one of Ray's workers, else 0."""
    try:
        named = "".join(process.cmdline()[:1])
        return int(process.memory_info().rss) if named.startswith("ray::") else 0
    except psutil.Error:
        return 0


def measured(home: Path, work: Workload, memory_gib: float | None) -> dict[str, Any]:
    """One job, in this process: peaks, and what was planned."""
    from tessera.workflows.models import find_model
    from tessera.workflows.predict import plan_prediction, predict
    from tessera.workflows.worker_plan import planned

    settings = prediction(home, work, "predicted", workers=1, memory_gib=memory_gib)
    _, output = plan_prediction(settings, find_model(settings.model, None))
    plan = planned(settings, work.contract, output, (0, 0, 0))
    peaks: dict[str, int] = {}
    with quiet(), followed(peaks):
        predict(settings)
    return peaks | {"planned": plan.memory.total, "tile": plan.tile.tile}


def apart(work: Workload, memory_gib: float | None = None) -> dict[str, Any]:
    """The same in a fresh process with a home of its own, so that no peak is another job's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        words = ["--apart", str(work.extent), str(work.sections), str(work.block[1]), str(work.network.filters)]
        environment = os.environ | {"TESSERA_HOME": made}
        for step in ("--put", "--run"):
            command = [sys.executable, __file__, step, made, *words, str(memory_gib or 0)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(found, file=sys.stderr, flush=True)
        return found


def in_a_process(words: list[str]) -> int:
    """The fresh process' side."""
    step, home, _, *sizes, memory = words
    extent, sections, side, filters = map(int, sizes)
    work = Workload(sections, extent, (sections // 2, side, side), replace(USUAL.network, filters=filters))
    if step == "--put":
        put_volume(Path(home), work)
        put_bundle(Path(home), work)
        return 0
    print(json.dumps(measured(Path(home), work, float(memory) or None)))
    return 0


def main() -> int:
    """Measure, print and keep."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    facts, work = machine(), asked_for((__doc__ or "").splitlines()[0], USUAL)
    double = replace(work, sections=2 * work.sections)
    small = apart(double)
    large = apart(replace(double, sections=2 * double.sections, extent=2 * double.extent))
    tight = apart(double, memory_gib=small["planned"] / 2**30 - 0.04)
    figures: dict[str, Estimate] = {}
    for name, found in (("small", small), ("8 times larger", large), ("less memory", tight)):
        figures |= {f"{name}, {part}, MiB": estimate([found[part] / MIB]) for part in ("driver", "worker", "planned")}
    aims = [
        Aim("worker, larger over small", estimate([large["worker"] / small["worker"]]), "<=", 1.1),
        Aim("driver, larger over small", estimate([large["driver"] / small["driver"]]), "<=", 1.1),
        Aim("worker over its plan", estimate([small["worker"] / small["planned"]]), "<=", 1.0),
        Aim("worker over its plan, at least", estimate([small["worker"] / small["planned"]]), ">=", 0.5),
        Aim("worker over its plan, smaller tiles", estimate([tight["worker"] / tight["planned"]]), "<=", 1.0),
    ]
    notes = [f"small: {double}; tiles {small['tile']}, with less memory {tight['tile']}"]
    return tell(Outcome("worker_memory", "Peak resident memory of tessera predict on Ray", facts, figures, aims, notes))


if __name__ == "__main__":
    sys.exit(in_a_process(sys.argv[1:]) if sys.argv[1:2] in (["--put"], ["--run"]) else main())
