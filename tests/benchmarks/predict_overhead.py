"""What a whole prediction costs over a bare loop of its model, and what its planned tiles save.

    python tests/benchmarks/predict_overhead.py [--extent 4096]

    tessera predict: Zarr, Ray, ledger, MLflow, one worker    --+
                                                                +-- take turns, the same cores
    a loop over the same model and tiles, all in memory       --+

Steady state: without the worker's first block. The default extent has 4 of the standard workload's blocks, and takes
some 9 minutes on two cores; 4096 is the standard workload, all 16 of them, in half an hour. The second part predicts a
section of 3 x 3 such blocks (3,072) with the tile that the planner chooses, over the loop at 384 useful pixels a tile.
Rounds are kept: a run that was stopped goes on. Prints the table, keeps results/predict_overhead.json, exits with 1
where an aim is missed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bystander import Bystander, answer, bystander
from kept import kept_rounds
from machine import commit, machine
from pairs import Estimate, estimate, ratio
from report import Aim, Outcome, tell
from workload import (
    BareLoop,
    Workload,
    asked_for,
    prediction,
    put_bundle,
    put_volume,
    quiet,
    raw_of,
    steady_voxels_per_second,
)

MINUTES = 16
USUAL = Workload(extent=2048)
PLANNED_EXTENT, SMALL_TILE = 3072, 384


def job_speed(home: Path, work: Workload, tile: tuple[int, int, int] | None) -> float:
    """A whole job; useful voxels per second without the first block."""
    from tessera.workflows.predict import predict

    settings = prediction(home, work, "predicted", tile=tile, workers=1, overwrite=True)
    with quiet():
        return steady_voxels_per_second(Path(str(predict(settings))))


def bare_speed(other: Bystander, tile: int, voxels: int) -> float:
    """The other arm, over as many useful voxels."""
    return float(other.ask(tile, max(1, voxels // tile**2)))


def bare_process(home: Path, work: Workload) -> int:
    """Answers how fast the loop is."""
    loop = BareLoop(home / "bundle", raw_of(home), work.contract)
    warm: set[int] = set()

    def speed(tile: int, tiles: int) -> float:
        if tile not in warm:
            loop.voxels_per_second(tile, 1)
            warm.add(tile)
        return loop.voxels_per_second(tile, tiles)

    return answer(speed)


def planned_side(home: Path, work: Workload) -> int:
    """What the planner chooses here."""
    from tessera.workflows.models import find_model
    from tessera.workflows.predict import plan_prediction

    settings = prediction(home, work, "planned", workers=1)
    plan, _ = plan_prediction(settings, find_model(str(home / "bundle"), None))
    return max(plan.tile)


def compared(
    name: str, work: Workload, bare_tile: int | None, pairs_of: Callable[..., dict[str, list[float]]]
) -> tuple[int, dict[str, list[float]]]:
    """Speeds of both arms on one workload; the bare loop has the planner's tile unless another is given."""
    from tessera.engine.session import connected

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        home = Path(made)
        os.environ["TESSERA_HOME"] = made
        put_volume(home, work)
        put_bundle_apart(home, work)
        side = planned_side(home, work)
        voxels = work.sections * work.extent**2 - work.sections * work.block[1] ** 2
        with bare_arm(home, work) as other, ExitStack() as ray:
            bare_speed(other, bare_tile or side, 0)  # it is warm before Ray starts, which gives up on a busy machine
            ray.enter_context(connected())
            arms = {
                "job": partial(job_speed, home, work, None),
                "bare": partial(bare_speed, other, bare_tile or side, voxels),
            }
            found = pairs_of(name, {"work": str(work), "tile": side, "bare": bare_tile, "commit": commit()}, arms)
        shutil.rmtree(home / "predicted.zarr", ignore_errors=True)
    return side, found


def put_bundle_apart(home: Path, work: Workload) -> None:
    """Made in a process of its own: this one is the driver and needs no TensorFlow."""
    import subprocess

    subprocess.run([sys.executable, __file__, "--bundle", str(home), *_words(work)], check=True)


def bare_arm(home: Path, work: Workload) -> AbstractContextManager[Bystander]:
    """The loop, waiting."""
    return bystander(__file__, "--bare", str(home), *_words(work))


def _words(work: Workload) -> list[str]:
    said: dict[str, Any] = {"extent": work.extent, "sections": work.sections, "block": work.block[1]}
    return [
        word for name, value in (said | {"filters": work.network.filters}).items() for word in (f"--{name}", str(value))
    ]


def main() -> int:
    """Measure, print and keep."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Ray lowers its workers' priority: on a machine with other work that would slow one arm alone.
    os.environ.setdefault("RAY_worker_niceness", "0")
    facts, work = machine(), asked_for((__doc__ or "").splitlines()[0], USUAL)
    large = Workload(1, 3 * work.block[1], (1, *work.block[1:]), work.network)
    side, same = compared("predict_overhead", work, None, kept_rounds)
    planned, small = compared("predict_planned", large, 3 * work.block[1] * SMALL_TILE // PLANNED_EXTENT, kept_rounds)
    figures: dict[str, Estimate] = {}
    for name, speeds in ((f"{work}, tiles of {side}", same), (f"{large}, tiles of {planned}", small)):
        figures |= {f"{name}, {arm}, useful voxels/s": estimate(values) for arm, values in speeds.items()}
    aims = [
        Aim("whole job over a bare loop", ratio(same["job"], same["bare"]), ">=", 0.95),
        Aim(f"planned tiles over a loop at {SMALL_TILE}", ratio(small["job"], small["bare"]), ">=", 1.15),
    ]
    what = (
        "Useful voxels per second of tessera predict with one worker, Zarr included, over a bare loop of its model in "
        "memory (steady state, in turns)"
    )
    return tell(Outcome("predict_overhead", what, facts, figures, aims, [f"standard workload: {work == Workload()}"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        sys.exit(bare_process(Path(sys.argv[2]), asked_for("an arm", USUAL, sys.argv[3:])))
    if sys.argv[1:2] == ["--bundle"]:
        put_bundle(Path(sys.argv[2]), asked_for("a model", USUAL, sys.argv[3:]))
        sys.exit(0)
    sys.exit(main())
