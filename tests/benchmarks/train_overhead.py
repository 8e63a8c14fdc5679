"""What Ray Train and Ray Data cost: steps per second through them, over a bare loop on batches in memory.

    python tests/benchmarks/train_overhead.py

    one Ray worker (fit, samples from Ray Data, reports)   --+
                                                             +-- take turns of 6 steps, both warm, on the same cores
    one process (a tf.function, the same batch shapes)     --+

The recipe is configs/isbi2012-cpu.yaml on the synthetic volume, once with plain crops and once with all of its
augmentation. Ray Data runs ahead of the training by a bounded number of samples: what a turn takes from that stock is
made again within the turn, so that its work counts. Prints the table, keeps results/train_overhead.json, exits with 1
where an aim is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bare_step import BareLoop, recipe_of, synthetic_batches, without_augmentation
from machine import ROOT, machine
from pairs import PAIRS, estimate, interleaved, ratio
from report import Aim, Outcome, tell
from turns import segment_of, tell_speed, wait_for

from tessera.settings.train import TrainSettings

MINUTES = 5
CONFIG = ROOT / "configs" / "isbi2012-cpu.yaml"
SECTIONS = (8, 512, 512)
TURN_STEPS = 6
AIMS = {"plain crops": 0.95, "all augmentation": 0.90}


def ray_loop(config: dict[str, Any]) -> None:
    """What training_loop.py does, but for validation, taking a turn between two log lines."""
    from tessera.engine.samples import sample_batches
    from tessera.engine.train import rank_and_world, report
    from tessera.model.training import FitPlan, fit
    from tessera.workflows.annotated import load_annotated
    from tessera.workflows.training_loop import make_sample, sampling_source

    settings, contract, folder = config["settings"], config["contract"], Path(config["folder"])
    rank, world = rank_and_world()
    shared = sampling_source(settings, contract, load_annotated(settings.data.train, settings.data))
    steps, batch = settings.schedule.steps, settings.schedule.batch
    begun = 0.0

    def batches(first_step: int) -> Iterator[Mapping[str, Any]]:
        first, last = first_step * batch, 100 * steps * batch  # never at its end: that would spare it work
        return sample_batches(make_sample, shared, first=first, last=last, rank=rank, world=world, batch_size=batch)

    def on_step(line: Mapping[str, float]) -> None:
        nonlocal begun
        report(line)
        tell_speed(folder, "ray", TURN_STEPS / (time.perf_counter() - begun))
        if line["step"] < steps:
            wait_for(folder, "ray")
        begun = time.perf_counter()

    wait_for(folder, "ray")
    begun = time.perf_counter()
    fit(
        batches,
        settings.network,
        settings.optimiser,
        FitPlan(steps, TURN_STEPS, steps, settings.seed),
        on_step=on_step,
        on_checkpoint=lambda snapshot: report({}, lambda kept: (kept / "done").touch()),
    )


def bare_process(folder: Path) -> int:
    """The other arm: the same shapes, from memory."""
    settings = recipe_of(CONFIG)
    loop = BareLoop(settings, synthetic_batches(settings, count=4))
    while True:
        wait_for(folder, "bare", patience_s=600)
        begun = time.perf_counter()
        loop.take(TURN_STEPS)
        tell_speed(folder, "bare", TURN_STEPS / (time.perf_counter() - begun))


@contextmanager
def bare_arm(folder: Path) -> Iterator[None]:
    """A bare process that waits for its turns."""
    child = subprocess.Popen([sys.executable, __file__, "--bare", str(folder)])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def speeds_of(settings: TrainSettings, folder: Path, pairs: int = PAIRS) -> dict[str, list[float]]:
    """Steps per second of both arms, turn by turn; the first turn of each is warm-up and does not count."""
    from tessera.engine.placement import train_share
    from tessera.engine.session import cluster_size, connected
    from tessera.engine.train import TrainGroup, run_group
    from tessera.workflows.annotated import load_annotated
    from tessera.workflows.training_plan import first_contract

    contract = first_contract(settings, load_annotated(settings.data.train, settings.data))
    config = {"settings": settings, "contract": contract, "folder": str(folder)}
    with connected(), bare_arm(folder):
        share = train_share((1, 1), "no", cluster_size())
        group = TrainGroup("overhead", folder, 1, share.cpus, max_failures=0)
        training = threading.Thread(target=run_group, args=(ray_loop, config, group, lambda line, kept: None))
        training.start()
        arms = {name: partial(segment_of, folder, name) for name in ("ray", "bare")}
        for arm in arms.values():
            arm()
        measured = interleaved(arms, pairs)
        training.join()
    return measured


def with_synthetic_data(settings: TrainSettings, pairs: int) -> TrainSettings:
    """The recipe on a small phantom, as many steps as the turns need."""
    from dataclasses import replace

    from tessera.settings.common import RunnerSettings
    from tessera.workflows.synthetic import synthetic_volumes
    from tessera.workflows.training_plan import synthetic_data

    volumes = synthetic_volumes(SECTIONS, settings.seed, RunnerSettings(engine="serial"))
    schedule = replace(settings.schedule, steps=TURN_STEPS * (pairs + 1))
    return replace(settings, data=synthetic_data(SECTIONS, volumes), schedule=schedule)


def main() -> int:
    """Measure, print and keep."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    facts = machine()
    recipe = with_synthetic_data(recipe_of(CONFIG), PAIRS)
    figures, aims = {}, []
    for name, settings in (("plain crops", without_augmentation(recipe)), ("all augmentation", recipe)):
        with tempfile.TemporaryDirectory() as folder:
            speeds = speeds_of(settings, Path(folder))
        figures |= {f"{name}, {arm}, steps/s": estimate(values) for arm, values in speeds.items()}
        aims.append(Aim(f"Ray over bare, {name}", ratio(speeds["ray"], speeds["bare"]), ">=", AIMS[name]))
    what = (
        "Steps per second through Ray Train and Ray Data with one worker, over a bare tf.function loop on batches in "
        "memory (interleaved turns of 6 steps)"
    )
    return tell(Outcome("train_overhead", what, facts, figures, aims, config=CONFIG))


if __name__ == "__main__":
    sys.exit(bare_process(Path(sys.argv[2])) if sys.argv[1:2] == ["--bare"] else main())
