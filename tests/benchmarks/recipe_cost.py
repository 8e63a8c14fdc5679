"""What a recipe costs on this machine, from a few steps of it: seconds a step, memory, and the hours of the whole run.

    python tests/benchmarks/recipe_cost.py configs/isbi2012-paper.yaml
    python tests/benchmarks/recipe_cost.py configs/isbi2012-gpu.yaml --steps 5 --schedule.batch 2

Some recipes take days where they were not made for: three steps tell before the days are spent. The samples are cut
from sections of the synthetic volume, of --size pixels, so no data is needed; what a step costs does not depend on what
a section shows. Steps run in this process, without Ray, samples first and the network after them: the estimate holds
where both share the same cores. The first step, which builds the graph, is told apart. Any setting of `tessera train`
may follow. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.cli.main import parse
from tessera.geometry.boxes import Box
from tessera.images.neighbours import neighbours_of
from tessera.images.phantom import Phantom
from tessera.model.bundle import Contract
from tessera.model.predictor import predict_middle
from tessera.model.training import FitPlan, Snapshot, fit
from tessera.settings.train import TrainSettings
from tessera.workflows.annotated import AnnotatedSet
from tessera.workflows.training_loop import SamplingSource, make_sample, sampling_source
from tessera.workflows.training_plan import first_contract

DEPTH = 2
"""Sections of the synthetic volume: no step is slower for more of them."""


@dataclass
class Timings:
    """Seconds that were measured, per step and for one section in one orientation.

    Attributes:
      sampling: making each step's samples.
      stepping: each whole step, its samples included; the first builds the graph.
      section: predicting one section once it is built.
    """

    sampling: list[float] = field(default_factory=list)
    stepping: list[float] = field(default_factory=list)
    section: float = 0.0


def phantom_sections(settings: TrainSettings, size: int) -> AnnotatedSet:
    """A few sections of the synthetic volume, of `size` pixels a side, as training would have read them."""
    block = Phantom(2012).block(Box.whole((DEPTH, size, size)))
    seen = settings.network.input_sections
    stacks = [block.raw[neighbours_of(z, seen, DEPTH)] for z in range(DEPTH)]
    names = tuple(f"synthetic section {z}" for z in range(DEPTH))
    return AnnotatedSet(
        raw=tuple(block.raw),
        membrane=tuple(block.membrane.astype(np.uint8)),
        names=names,
        dtype="uint8",
        voxel_size_nm=(50.0, 4.0, 4.0),
        fingerprint="synthetic",
        neighbours=tuple(stacks) if seen > 1 else (),
    )


def rehearse(settings: TrainSettings, steps: int, size: int) -> Timings:
    """Take `steps` steps of the recipe, predict one section with what came out, and say how long each took."""
    sections = phantom_sections(settings, size)
    contract = first_contract(settings, sections)
    source, timings = sampling_source(settings, contract, sections), Timings()

    def timed_section(snapshot: Snapshot) -> None:
        timings.section = seconds_a_section(snapshot, contract, sections.stacks[0])

    since = time.perf_counter()

    def on_step(_: Mapping[str, float]) -> None:
        nonlocal since
        now = time.perf_counter()
        timings.stepping.append(now - since)
        since = now

    fit(
        lambda first: timed_batches(source, first, steps, timings.sampling),
        settings.network,
        settings.optimiser,
        FitPlan(steps, log_every=1, checkpoint_every=steps, seed=settings.seed),
        on_step=on_step,
        on_checkpoint=timed_section,
        dice=settings.loss.dice,
        numerics=settings.numerics,
    )
    return timings


def timed_batches(
    source: SamplingSource, first: int, steps: int, seconds: list[float]
) -> Iterator[dict[str, NDArray[Any]]]:
    """The batches of the run's own samples, each with the time that it took to make."""
    batch = source.settings.schedule.batch
    for step in range(first, steps):
        since = time.perf_counter()
        samples = [make_sample(source, index) for index in range(step * batch, (step + 1) * batch)]
        stacked = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        seconds.append(time.perf_counter() - since)
        yield stacked


def seconds_a_section(snapshot: Snapshot, contract: Contract, stack: NDArray[np.uint8]) -> float:
    """Seconds to predict one section in one orientation; a first pass, which builds the graph, is left out."""
    predict = snapshot.predict()
    predict_middle(predict, stack, contract)
    since = time.perf_counter()
    predict_middle(predict, stack, contract)
    return time.perf_counter() - since


def extrapolated(settings: TrainSettings, timings: Timings, held_out: int) -> dict[str, float]:
    """Hours of the whole run: its steps, and its held-out sections at every checkpoint in every orientation."""
    schedule = settings.schedule
    seconds = median(timings.stepping[1:] or timings.stepping)
    validations = -(-schedule.steps // schedule.checkpoint_every)
    validation = validations * held_out * settings.inference.symmetries * timings.section
    return {
        "seconds_per_step": seconds,
        "seconds_of_it_sampling": median(timings.sampling[1:] or timings.sampling),
        "seconds_per_section_and_orientation": timings.section,
        "hours_of_steps": schedule.steps * seconds / 3600,
        "hours_of_validation": validation / 3600,
        "hours": (schedule.steps * seconds + validation) / 3600,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearse one recipe and print what it would cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("--steps", type=int, default=3, help="steps to take; the first is not counted")
    parser.add_argument("--size", type=int, default=512, help="pixels a side of a section")
    parser.add_argument("--held_out", type=int, default=4, help="sections that each validation predicts")
    chosen, settings_words = parser.parse_known_args(arguments)
    _, settings = parse(["train", "--config", chosen.config, *settings_words])
    timings = rehearse(settings, chosen.steps, chosen.size)
    document = {
        "config": chosen.config,
        "changed": settings_words,
        "cores": os.cpu_count(),
        "steps": settings.schedule.steps,
        "rehearsed_seconds": timings.stepping,
        **extrapolated(settings, timings, chosen.held_out),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
