"""Neurons of the phantom from our own predictions: VOI and adapted Rand error of the whole volume after agglomeration.

    python tests/benchmarks/phantom_cells.py [--sections 64] [--extent 1024] [--workers 2]

The network of `make demo` learns from the phantom of seed 2012; the phantom of seed 2013 is predicted, cut by watershed
and merged with the default settings, and scored against its instances, membrane left out. Components of the same
probability, in 6 neighbours, and two other thresholds of the same graph stand beside it. Prints the table, keeps
results/phantom_cells.json, exits with 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import ROOT, machine
from pairs import estimate
from report import Aim, Outcome, tell
from workload import quiet, say

MINUTES = 20
LEARN, TEST = 2012, 2013
LEARN_SHAPE = (24, 512, 512)
USUAL = 0.5
OTHERS = (0.3, 0.7)


def membranes(shape: tuple[int, int, int], workers: int) -> tuple[str, str]:
    """Train, and predict the other phantom: names of its probability and of its instances."""
    from tessera.settings.common import RunnerSettings
    from tessera.settings.predict import PredictSettings
    from tessera.settings.train import ScheduleSettings, TrainSettings
    from tessera.workflows.predict import predict
    from tessera.workflows.synthetic import synthetic_volumes
    from tessera.workflows.train import train
    from tessera.workflows.training_plan import synthetic_data

    serial = RunnerSettings(engine="serial")
    learnt, asked = synthetic_volumes(LEARN_SHAPE, LEARN, serial), synthetic_volumes(shape, TEST, serial)
    data = synthetic_data(LEARN_SHAPE, learnt)
    trained = train(
        TrainSettings(name="phantom", data=data, schedule=replace(ScheduleSettings(), checkpoint_every=120))
    )
    say(f"trained, threshold {trained.contract.threshold}")
    settings = PredictSettings(str(asked.raw), trained.model_uri, "membranes", workers=workers, audit=False)
    return str(predict(settings)), str(asked.instances)


def scored(probability: str, truth: str, name: str, **settings: Any) -> dict[str, float]:
    """Cut it into cells and score them: VOI in bits, adapted Rand error by CREMI's convention, seconds of the job."""
    from tessera.settings.evaluate import EvaluateSettings
    from tessera.settings.segment import SegmentSettings
    from tessera.workflows.instance_scores import score_cells
    from tessera.workflows.segment import segment

    start = time.perf_counter()
    cells = segment(SegmentSettings(probability, name, **settings))
    seconds = time.perf_counter() - start
    found = score_cells(EvaluateSettings(labels=truth, cells=str(cells), engine="serial"))
    names = ("voi", "voi_split", "voi_merge", "adapted_rand_error_cremi")
    say(f"{name}: { {one: round(found[one], 4) for one in names} }, {seconds:.0f} s")
    return {one: found[one] for one in names} | {"seconds": seconds}


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, usual in (("sections", 64), ("extent", 1024), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    from tessera.settings.common import RunnerSettings
    from tessera.settings.segment import AgglomerationSettings
    from tessera.workflows.block_jobs import session

    facts = machine()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made, quiet():
        os.environ["TESSERA_HOME"] = made
        with session(RunnerSettings()):
            probability, truth = membranes((given.sections, given.extent, given.extent), given.workers)
            common: dict[str, Any] = {"workers": given.workers}
            shared = common | {"method": "watershed", "fragments": "fragments"}
            found = {
                f"agglomerated at {threshold}": scored(
                    probability, truth, f"cells-{threshold}", agglomeration=AgglomerationSettings(threshold), **shared
                )
                for threshold in (USUAL, *OTHERS)
            }
            found["components, 6 neighbours"] = scored(probability, truth, "components", connectivity=6, **common)
    figures = {f"{name}, {what}": estimate([value]) for name, row in found.items() for what, value in row.items()}
    usual = found[f"agglomerated at {USUAL}"]
    aims = [
        Aim("VOI, bits", estimate([usual["voi"]]), "<=", 0.5),
        Aim("adapted Rand error, CREMI", estimate([usual["adapted_rand_error_cremi"]]), "<=", 0.05),
    ]
    shape = (given.sections, given.extent, given.extent)
    notes = [f"phantom {shape} of seed {TEST}; the network saw {LEARN_SHAPE} of seed {LEARN}"]
    what = "The phantom's neurons from our own predictions"
    return tell(Outcome("phantom_cells", what, facts, figures, aims, notes, Path(ROOT / "configs" / "demo.yaml")))


if __name__ == "__main__":
    sys.exit(main())
